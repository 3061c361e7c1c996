"""IDEAL, DoReMi, DoGE, MoS and the plain ones: one bill each, a verdict at equal size.

On the embedded suite, or with `--config` on your own data and model. `make demo` runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quickstart import describe
from rich.console import Console

from raymix.cli import look, run
from raymix.core.errors import ConfigError
from raymix.core.mixture import Space
from raymix.experiment.build import prepare, space
from raymix.experiment.config import ConfirmSettings, Experiment, SearcherSettings
from raymix.experiment.load import load
from raymix.report.compared import write_comparison
from raymix.report.facts import Facts, facts, repeats
from raymix.report.methods import arms, methods_report
from raymix.report.table import comparisons, confirmations
from raymix.report.verdict import verdict
from raymix.study.groups import chosen, runs_of
from raymix.study.record import read
from raymix.testing.grid import OPTIMUM, read_grid
from raymix.testing.suite import RECIPE

TEMPERATURE = 2.0
"""Shares go with size^(1/T)."""

MU_PER_RATE = 100.0
"""DoGE's mu over the learning rate, as published (.05 at 5e-4): its steps do not depend on it."""

UPDATES = 10
"""How often MoS moves the mixture in a training. (Published: every 100 steps of a long one.)"""

LEAST_ROWS = 64
"""Of each domain, that IDEAL looks at rather than giving up a round."""

console = Console(width=140)


def fixed(within: Space) -> dict[str, dict[str, float]]:
    """Rules of thumb by name: shares by domain, inside bounds and epoch caps.

    Temperature: sizes^(1/2). Capped: sizes cut at twice the median (T5's rule with that limit).
    """
    sizes = np.array([d.size(within.budget.unit) for d in within.domains], dtype=float)
    shares = {
        f"temperature {TEMPERATURE:g}": sizes ** (1 / TEMPERATURE),
        "size-capped": np.minimum(sizes, 2 * float(np.median(sizes))),
    }
    for place, name in enumerate(within.names):
        shares[f"only {name}"] = np.eye(len(sizes))[place]
    allowed = {name: within.project(share / share.sum()) for name, share in shares.items()}
    return {name: mixture.as_dict() for name, mixture in allowed.items()}


def searchers(
    experiment: Experiment, bill: float, rounds: int, steps: int, paper: bool
) -> dict[str, dict[str, Any]]:
    """Settings of every method that is more than a fixed mixture, by its name."""
    most = int(bill)
    rate, weights = experiment.training.learning_rate, experiment.search.objective.weights
    mos = {
        "type": "MoS",
        "rewards": ["transferability", "difficulty", "trajectory"],
        "every": max(1, steps // UPDATES),
        "relax": 0.5,
    }
    found: dict[str, dict[str, Any]] = {
        "doubled weakest": {"type": "Doubled", "ignore": [n for n, w in weights.items() if not w]},
        "dirichlet": {"type": "Dirichlet", "num_trials": most},
        "tpe": {"type": "Optuna", "num_trials": most, "startup": max(2, most // 2)},
        "doremi": {"type": "Proxy", "reweighter": {"type": "DoReMi"}},
        "doge": {"type": "Proxy", "reweighter": {"type": "DoGE", "mu": MU_PER_RATE * rate}},
        "mos": {"type": "Online", "reweighter": mos},
        "ideal": {"type": "Ideal", "rounds": rounds},
    }
    if paper:
        found["ideal paper"] = {"type": "Ideal", "mode": "paper", "rounds": rounds}
    return found


def influence_rows(within: Space, bill: float, rows: int, eval_rows: int) -> tuple[int, int]:
    """Rounds of IDEAL that a bill pays for, and rows of each domain to look at (at most `rows`).

    A round is a training and a measurement, whose passes `raymix plan` names: twice the rows
    trained on and once those of eval. More rounds come before more rows than `LEAST_ROWS`.
    """
    amount = within.budget.amount
    means = [d.size(within.budget.unit) / max(1, d.rows) for d in within.domains]
    held = eval_rows * sum(means)
    for rounds in (3, 2, 1):
        pays = ((bill - 1) / rounds - 1) * amount - held
        looked = int(pays / (2 * sum(means)))
        if looked >= min(rows, LEAST_ROWS):
            return rounds, min(rows, looked)
    raise ConfigError(
        f"--bill {bill:g} does not pay for a round of IDEAL: give more, or fewer eval_rows"
    )


def comparison(
    experiment: Experiment, bill: float, seeds: int, paper: bool, keep: bool
) -> Experiment:
    """The experiment with all methods, under one bill, confirmed at equal size."""
    prepared = prepare(experiment)
    within = space(experiment, prepared.domains)
    batch = experiment.training.per_device_train_batch_size
    batch *= experiment.training.gradient_accumulation_steps * experiment.cluster.num_workers
    mean = sum(d.size(within.budget.unit) for d in within.domains) / sum(
        d.rows for d in within.domains
    )
    steps = max(1, int(within.budget.amount / mean / batch))
    eval_rows = experiment.training.eval_rows or 256
    rounds, rows = influence_rows(within, bill, experiment.influence.train_rows, eval_rows)
    methods = tuple(
        SearcherSettings.model_validate({**settings, "name": name})
        for name, settings in searchers(experiment, bill, rounds, steps, paper).items()
    )
    search = experiment.search.model_copy(
        update={
            "searchers": methods,
            "seeds": seeds,
            "bill": bill,
            "baselines": {**experiment.search.baselines, **fixed(within)},
            "confirm": ConfirmSettings(of="methods", seeds=seeds, save=keep),
        }
    )
    influence = experiment.influence.model_copy(update={"train_rows": rows})
    return experiment.model_copy(update={"search": search, "influence": influence})


def at_ideals_size(experiment: Experiment, known: Facts, folder: Path, seeds: int) -> Experiment:
    """DoReMi's, DoGE's and IDEAL's own mixture at the size to which IDEAL's paper mode grew."""
    found = {arm.name: arm.mixture for arm in arms(known)}
    runs = runs_of(known.members)["ideal paper"]
    ends = (chosen(known.history, run) for run in runs)
    sizes = [t.proposal.budget.amount for t in ends if t is not None and t.proposal.budget]
    if not sizes:
        raise ConfigError("IDEAL's paper mode came to nothing: there is no size to compare at")
    names = [name for name in ("ideal paper", "ideal", "doremi", "doge") if name in found]
    search = experiment.search.model_copy(
        update={
            "searchers": (),
            "bill": None,
            "baselines": {name: found[name].as_dict() for name in names},
            "confirm": ConfirmSettings(top_k=0, seeds=seeds),
        }
    )
    mixture = experiment.mixture.model_copy(update={"budget": round(float(np.mean(sizes)))})
    study = experiment.study.model_copy(
        update={"name": f"{experiment.study.name}-large", "output_dir": str(folder)}
    )
    return experiment.model_copy(update={"search": search, "mixture": mixture, "study": study})


def suite(folder: Path, domains: int) -> Experiment:
    """The embedded suite, evaluated five times in a training on a part of its eval rows."""
    found = describe(folder, domains, 0, 0, 0)
    training = found.training.model_copy(update={"eval_steps": RECIPE.steps // 5, "eval_rows": 128})
    study = found.study.model_copy(
        update={"name": "ideal_vs_doremi", "output_dir": str(folder / "study")}
    )
    return found.model_copy(update={"training": training, "study": study})


def main(
    config: Annotated[Path | None, typer.Option(help="An experiment of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/comparison"),
    bill: Annotated[float, typer.Option(help="Training units for each method and seed.")] = 5.0,
    seeds: Annotated[int, typer.Option(help="Of each method, and of the verdict.")] = 3,
    domains: Annotated[int, typer.Option(help="Of the embedded suite: 3, 4 or 5.")] = 5,
    paper: Annotated[bool, typer.Option(help="IDEAL's paper mode too, and its size.")] = True,
    lm_eval: Annotated[str, typer.Option(help="lm-eval tasks on the final models.")] = "",
    lm_eval_include: Annotated[Path | None, typer.Option(help="Folder of local tasks.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the study in the folder.")] = False,
) -> None:
    """Compare all methods and say which are better than proportional."""
    base = load(config) if config else suite(folder, domains)
    if config:
        study = base.study.model_copy(update={"output_dir": str(folder / "study")})
        base = base.model_copy(update={"study": study})
    experiment = comparison(base, bill, seeds, paper, bool(lm_eval))
    outcome = run(experiment, resume)
    known = facts(read(outcome.folder))
    console.print(methods_report(known, None if config else optimum(domains)))
    for path in write_comparison(known, outcome.folder / "figures"):
        console.print(f"figure  {path}", soft_wrap=True)
    if paper:
        larger = at_ideals_size(base, known, folder / "larger", seeds)
        said = facts(read(run(larger, resume).folder))
        console.print(f"\nThe same at IDEAL's size in paper mode, {larger.mixture.budget:,}:")
        console.print(confirmations(said), comparisons(verdict(repeats(said))))
    if lm_eval:
        from harness import lm_eval_scores, score_table

        models = {path.name: path for path in sorted((outcome.folder / "models").iterdir())}
        console.print(score_table(lm_eval_scores(models, lm_eval.split(","), lm_eval_include)))
    look(experiment)


def optimum(domains: int) -> float:
    """Test loss of the best mixture of the measured grid, trained with fresh seeds."""
    grid = read_grid(domains)
    return float(grid.score(grid.fresh[OPTIMUM]["test"]).mean())


if __name__ == "__main__":
    typer.run(main)
