"""IDEAL, DoReMi, DoGE, MoS and the plain ones: one bill each, a verdict at equal size.

On the embedded suite, or with `--config` on your own data and model. `make demo` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quickstart import describe
from rich.console import Console

from raymix.cli import look, run, told
from raymix.cluster.config import EarlyStopping
from raymix.core.errors import ConfigError
from raymix.core.mixture import Space
from raymix.data.prepare import Prepared
from raymix.data.store import open_table
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

LEAST_BILL = 3.4
"""DoReMi's reference and proxy with the reference's losses are 2 1/3 trainings, its last is one."""

SLACK = 0.93
"""The part of the bill that IDEAL is planned for: rows are not all of the same length."""

GROWTH = 1.15
"""What a round of IDEAL's paper mode may at the most add to the size."""

console = Console(width=140)


@dataclass(frozen=True)
class Sizes:
    """What the data and a training of the experiment come to.

    `training`: tokens of one; `steps` of one; `rows` and `lengths` [K] of the train splits, lengths
    in mean tokens; `held`: tokens of the eval rows that a measurement of influence looks at.
    """

    training: float
    steps: int
    rows: tuple[int, ...]
    lengths: tuple[float, ...]
    held: float

    def looked(self, rows: int) -> float:
        """Tokens of `rows` of each domain, of those that it has."""
        pairs = zip(self.rows, self.lengths, strict=True)
        return float(sum(min(rows, own) * length for own, length in pairs))


def sizes_of(experiment: Experiment, prepared: Prepared) -> Sizes:
    """Counted on the prepared data, at the prior mixture."""
    within, training = space(experiment, prepared.domains), experiment.training
    unit = within.budget.unit
    tokens = within.budget.amount * sum(
        share * d.tokens / max(1, d.size(unit))
        for share, d in zip(within.prior.weights, within.domains, strict=True)
    )
    lengths = tuple(d.tokens / max(1, d.rows) for d in within.domains)
    mean = float(np.dot(within.prior.weights, lengths))
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    each = (
        batch * experiment.cluster.num_workers * (training.max_length if training.packing else mean)
    )
    held = 0.0
    for name in within.names:
        table = open_table(prepared.stores[name]["eval"])
        count = min(training.eval_rows or len(table.tokens), len(table.tokens))
        held += count * float(np.mean(table.tokens))
    rows = tuple(d.rows for d in within.domains)
    return Sizes(tokens, max(1, int(tokens / each)), rows, lengths, held)


def influence_plan(
    sizes: Sizes, bill: float, rows: int, growth: float = 1.0, fixed: bool = False
) -> tuple[int, int]:
    """Rounds of IDEAL that a bill pays for, and rows of each domain to look at (at most `rows`).

    A round is a training, `growth` times the size of the one before, and a measurement on it, whose
    passes `raymix plan` names: twice the rows trained on and once those of eval. More rounds come
    before more rows than `LEAST_ROWS`; `fixed`: the rows are as given. No round: (0, 0).
    """
    for rounds in (3, 2, 1):
        trainings = sum(growth**number for number in range(rounds + 1))
        pays = (SLACK * bill - trainings) * sizes.training / rounds
        looked = rows
        while looked > 0 and 2 * sizes.looked(looked) + sizes.held > pays:
            looked = 0 if fixed else looked - max(1, looked // 20)
        if looked >= (rows if fixed else min(rows, LEAST_ROWS, max(sizes.rows))):
            return rounds, looked
    return 0, 0


def fixed(within: Space) -> dict[str, dict[str, float]]:
    """Rules of thumb by name: shares by domain, inside bounds and epoch caps.

    Temperature: sizes^(1/2). Capped: sizes cut at twice the median (T5's rule with that limit). A
    domain alone is "mostly" where bounds or caps ask for others, and left out where it may have
    nothing.
    """
    sizes = np.array([d.size(within.budget.unit) for d in within.domains], dtype=float)
    plain = {
        f"temperature {TEMPERATURE:g}": sizes ** (1 / TEMPERATURE),
        "size-capped": np.minimum(sizes, 2 * float(np.median(sizes))),
    }
    found = {n: within.project(shares / shares.sum()).as_dict() for n, shares in plain.items()}
    for place, (name, ceiling) in enumerate(zip(within.names, within.ceiling(), strict=True)):
        if ceiling > 0:
            alone = within.project(np.eye(len(sizes))[place])
            word = "only" if alone.weights[place] > 1 - 1e-6 else "mostly"
            found[f"{word} {name}"] = alone.as_dict()
    return found


def searchers(
    experiment: Experiment, sizes: Sizes, bill: float, rounds: int, paper: int
) -> dict[str, dict[str, Any]]:
    """Settings of every method that is more than a fixed mixture, by its name."""
    most, steps = int(bill), sizes.steps
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
        found["ideal paper"] = {"type": "Ideal", "mode": "paper", "rounds": paper}
    return found


def comparison(
    experiment: Experiment, prepared: Prepared, bill: float, seeds: int, paper: bool, keep: bool
) -> Experiment:
    """The experiment with all methods, under one bill, confirmed at equal size.

    Raises:
        ConfigError: the bill does not pay for every method, or a name is used twice.
    """
    if bill < LEAST_BILL:
        raise ConfigError(
            f"--bill {bill:g} does not pay for DoReMi, whose reference, proxy and final training "
            f"come to more than 3.3 units: give at least {LEAST_BILL:g}"
        )
    sizes = sizes_of(experiment, prepared)
    rounds, rows = influence_plan(sizes, bill, experiment.influence.train_rows)
    if not rounds:
        raise ConfigError(
            f"--bill {bill:g} does not pay for a round of IDEAL: give more, or set "
            "training.eval_rows lower"
        )
    longer = influence_plan(sizes, bill, rows, GROWTH, fixed=True)[0] if paper else 0
    methods = searchers(experiment, sizes, bill, rounds, longer)
    own = experiment.search.baselines
    twice = [name for name in own if name in methods]
    if twice:
        raise ConfigError(f"search.baselines: '{twice[0]}' is the name of a method; rename it")
    search = experiment.search.model_copy(
        update={
            "searchers": tuple(
                SearcherSettings.model_validate({**settings, "name": name})
                for name, settings in methods.items()
            ),
            "seeds": seeds,
            "bill": bill,
            "baselines": {**fixed(space(experiment, prepared.domains)), **own},
            # A scheduler would hold the methods' trainings against each other.
            "early_stopping": EarlyStopping(),
            "confirm": ConfirmSettings(of="methods", seeds=seeds, save=keep),
        }
    )
    influence = experiment.influence.model_copy(update={"train_rows": rows})
    return experiment.model_copy(update={"search": search, "influence": influence})


def at_ideals_size(
    experiment: Experiment, prepared: Prepared, known: Facts, folder: Path, seeds: int
) -> Experiment | None:
    """DoReMi's, DoGE's and IDEAL's mixtures at the size to which IDEAL's paper mode grew.

    The mixture of a method is the mean over its runs. None where paper mode grew nothing.
    """
    ends = (chosen(known.history, run) for run in runs_of(known.members).get("ideal paper", ()))
    sizes = [t.proposal.budget.amount for t in ends if t is not None and t.proposal.budget]
    if not sizes:
        return None
    mixture = experiment.mixture.model_copy(update={"budget": round(float(np.mean(sizes)))})
    study = experiment.study.model_copy(
        update={"name": f"{experiment.study.name}-large", "output_dir": str(folder)}
    )
    larger = experiment.model_copy(update={"mixture": mixture, "study": study})
    within = space(larger, prepared.domains)
    found = {
        arm.name: within.project(arm.mixture.ordered(within.names).array()) for arm in arms(known)
    }
    names = [name for name in ("ideal paper", "ideal", "doremi", "doge") if name in found]
    search = experiment.search.model_copy(
        update={
            "searchers": (),
            "baselines": {name: found[name].as_dict() for name in names},
            "early_stopping": EarlyStopping(),
            "confirm": ConfirmSettings(top_k=0, seeds=seeds),
        }
    )
    return larger.model_copy(update={"search": search})


def suite(folder: Path, domains: int) -> Experiment:
    """The embedded suite, evaluated five times in a training on a part of its eval rows."""
    found = describe(folder, domains, 0, 0, 0)
    training = found.training.model_copy(update={"eval_steps": RECIPE.steps // 5, "eval_rows": 128})
    study = found.study.model_copy(update={"name": "ideal_vs_doremi"})
    return found.model_copy(update={"training": training, "study": study})


def yours(config: Path) -> Experiment:
    """The user's experiment; says what of its search is not used."""
    experiment = load(config)
    given = experiment.search.model_fields_set & {
        "searchers",
        "num_trials",
        "seeds",
        "bill",
        "early_stopping",
        "confirm",
    }
    if given:
        named = ", ".join(f"search.{name}" for name in sorted(given))
        console.print(f"{config}: {named} not used, the comparison has its own")
    return experiment


def main(
    config: Annotated[Path | None, typer.Option(help="An experiment of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/comparison"),
    bill: Annotated[float, typer.Option(help="Training units for each method and seed.")] = 5.0,
    seeds: Annotated[int, typer.Option(min=1, help="Of each method and the verdict.")] = 3,
    domains: Annotated[int, typer.Option(help="Of the embedded suite: 3, 4 or 5.")] = 5,
    paper: Annotated[bool, typer.Option(help="IDEAL's paper mode too, and its size.")] = True,
    lm_eval: Annotated[str, typer.Option(help="lm-eval tasks on the final models.")] = "",
    lm_eval_include: Annotated[Path | None, typer.Option(help="Folder of local tasks.")] = None,
    pools: Annotated[int | None, typer.Option(min=1, help="At once; default: all fit.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the study in the folder.")] = False,
) -> None:
    """Compare all methods and say which are better than proportional."""
    with told():
        tasks = lm_eval.split(",") if lm_eval else []
        if tasks:
            from harness import known_tasks

            known_tasks(tasks, lm_eval_include)
        base = yours(config) if config else suite(folder, domains)
        study = base.study.model_copy(update={"output_dir": str(folder / "study")})
        base = base.model_copy(update={"study": study})
        if pools is not None:
            cluster = base.cluster.model_copy(update={"pools": pools})
            base = base.model_copy(update={"cluster": cluster})
        prepared = prepare(base)
        experiment = comparison(base, prepared, bill, seeds, paper, bool(tasks))
        outcome = run(experiment, resume)
        known = facts(read(outcome.folder))
        console.print(methods_report(known, None if config else optimum(domains)))
        for path in write_comparison(known, outcome.folder / "figures"):
            console.print(f"figure  {path}", soft_wrap=True)
        if paper:
            larger = at_ideals_size(base, prepared, known, folder / "larger", seeds)
            at_size(larger, resume)
        if tasks:
            score(outcome.folder / "models", tasks, lm_eval_include)
        look(experiment)


def at_size(larger: Experiment | None, resume: bool) -> None:
    """Train and compare at IDEAL's size."""
    if larger is None:
        console.print("IDEAL's paper mode kept its start or had no round: no other size to compare")
        return
    said = facts(read(run(larger, resume).folder))
    size = f"{larger.mixture.budget:,} {larger.mixture.unit}"
    console.print(f"\nAt the size to which IDEAL grew in paper mode, {size} (means over runs):")
    console.print(confirmations(said), comparisons(verdict(repeats(said))))


def score(folder: Path, tasks: list[str], include: Path | None) -> None:
    """Run the tasks of lm-eval on the confirmed models."""
    from harness import lm_eval_scores, score_table

    if not folder.is_dir():
        raise ConfigError(f"{folder} has no models: --lm-eval must be given from the start")
    models: Mapping[str, Path] = {path.name: path for path in sorted(folder.iterdir())}
    console.print(score_table(lm_eval_scores(models, tasks, include)))


def optimum(domains: int) -> float:
    """Test loss of the best mixture of the measured grid, trained with fresh seeds."""
    grid = read_grid(domains)
    return float(grid.score(grid.fresh[OPTIMUM]["test"]).mean())


if __name__ == "__main__":
    typer.run(main)
