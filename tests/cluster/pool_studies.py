"""Small studies for the pool's tests; run as a script, a study in a process of its own."""

import sys
from pathlib import Path

from pool_trainers import TOY

from raymix.cluster.config import Cluster, EarlyStopping
from raymix.search.dirichlet import Dirichlet
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.study import Study
from raymix.train.config import Setup, Training

ASHA = EarlyStopping(scheduler="asha")


def toy_study(folder, trials=3, confirm=0, resume=False, listeners=()):
    """The base, two baselines, `trials` random mixtures, `confirm` blocks of confirmations."""
    methods = (Method("dirichlet", Dirichlet(), trials),)
    plan = Plan(
        TOY.space(), MultiTask(), Objective(), methods, confirm=Confirm(top_k=1, seeds=confirm)
    )
    return Study(folder, plan, {"data": "toy"}, resume=resume, listeners=listeners)


def toy_setup(folder):
    return Setup({"target": "toy"}, Training(), {}, str(folder))


def main(folder, trainer, pools, workers, trials, scheduler):
    """What `raymix tune --resume` does, with a trainer of our own."""
    from raymix.cluster.tune import tune_study

    study = toy_study(folder, int(trials), resume=True)
    cluster = Cluster(pools=int(pools), num_workers=int(workers))
    stopping = EarlyStopping(scheduler=scheduler)
    try:
        tune_study(study, toy_setup(folder), cluster, stopping, f"pool_trainers:{trainer}")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    finally:
        study.close()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(*sys.argv[1:]))
