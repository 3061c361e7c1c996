"""A raymix searcher in a Ray Tune `Tuner` of your own, on a problem with a known optimum.

    python experiments/own_tuner.py

The trainable is yours: here a formula with the losses that three domains would have. It gets a
mixture as `config["weights"]` and reports what the searcher minimises.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import ray
from ray import tune

from raymix.cluster.searcher import TuneSearcher
from raymix.search.optuna import Optuna
from raymix.testing.toy import Toy

PROBLEM = Toy()


def train(config: dict[str, Any]) -> None:
    """Your training on a mixture; the mean of the domains' losses is reported."""
    weights = [config["weights"][name] for name in PROBLEM.names]
    tune.report({"eval/mean": float(PROBLEM.losses(weights).mean())})


def main(trials: int = 24) -> float:
    """Search; returns how far the best mixture found is from the optimum, in nats per token."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    searcher = TuneSearcher(Optuna(), PROBLEM.space(), metric="eval/mean", mode="min", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        found = tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                search_alg=tune.search.ConcurrencyLimiter(searcher, max_concurrent=1),
                num_samples=trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        best = found.get_best_result("eval/mean", "min")
    ray.shutdown()
    regret = best.metrics["eval/mean"] - PROBLEM.mean_loss(PROBLEM.optimum())
    print("best mixture:", {k: round(v, 3) for k, v in best.config["weights"].items()})
    print("optimum:     ", {k: round(v, 3) for k, v in PROBLEM.optimum().as_dict().items()})
    print(f"regret: {regret:.4f} nats per token")
    return regret


if __name__ == "__main__":
    main()
