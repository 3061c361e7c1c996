"""Multi-task, sequential, mixed-sequential, DMT and ProMoT under one budget, with a verdict.

On the embedded suite, or with `--config` on your own data and model. Two parts in one study: all
strategies train the same mixture (the prior), and one task alone is tuned with and without ProMoT
and its controls. Each claim of the sources is then held against what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from quickstart import describe
from rich.console import Console, RenderableType

from raymix.cli import look, run, told
from raymix.cluster.config import EarlyStopping
from raymix.core.errors import ConfigError, nearest
from raymix.core.trial import Trial
from raymix.data.prepare import Prepared
from raymix.experiment.build import prepare, space
from raymix.experiment.config import ConfirmSettings, Experiment, SearcherSettings
from raymix.experiment.load import load
from raymix.experiment.strategy import StrategySettings
from raymix.report.claims import Claim, Measure, claims_table, findings
from raymix.report.facts import Facts, Row, facts, rows
from raymix.report.methods import methods_report
from raymix.report.stage_tables import matrix, summary, swapped
from raymix.report.stages import courses
from raymix.report.style import DPI
from raymix.report.tradeoff import group_loss, tradeoff
from raymix.study.record import read
from raymix.testing.skills import SORT_FORMAT
from raymix.testing.suite import RECIPE

SHARES = {"0": 0.0, "1/256": 1 / 256, "1/64": 1 / 64, "1/16": 1 / 16, "1/4": 1 / 4, "1": 1.0}
"""DMT's k, as published."""

PLAIN = "multi-task"
MIXED = "mixed-sequential = dmt 0"

console = Console(width=140)


@dataclass(frozen=True)
class Groups:
    """Which domains are the specialities, and which the general ability; `target`: one task."""

    special: tuple[str, ...]
    general: tuple[str, ...]
    target: str

    @property
    def others(self) -> tuple[str, ...]:
        """All domains but the target."""
        return tuple(name for name in (*self.special, *self.general) if name != self.target)


def grouped(
    names: Sequence[str], weights: Mapping[str, float], special: str, target: str | None
) -> Groups:
    """The groups that the options name; the general ability is all that is no speciality.

    Domains that the objective leaves out belong to neither.

    Raises:
        ConfigError: an unknown domain, or nothing on one side.
    """
    asked = tuple(name.strip() for name in special.split(",") if name.strip())
    named = [("--special", name) for name in asked] + ([("--target", target)] if target else [])
    for option, name in named:
        if name not in names:
            hint = nearest(name, names) or f"; known: {', '.join(names)}"
            raise ConfigError(f"{option}: unknown domain '{name}'{hint}")
    general = tuple(n for n in names if n not in asked and weights.get(n, 1.0) > 0)
    if not asked or not general:
        raise ConfigError("--special must name at least one domain, and leave one that counts")
    return Groups(asked, general, target or asked[0])


def strategies(groups: Groups, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of every strategy that trains the whole mixture, by its name."""
    special = list(groups.special)
    rest = [name for name in names if name not in special]
    found: dict[str, dict[str, Any]] = {
        "sequential": {"type": "Sequential", "order": [*special, rest]},
        MIXED: {"type": "MixedSequential", "special": special},
    }
    for words, k in SHARES.items():
        if not k:
            continue  # mixed-sequential is that, to the row
        found[f"dmt {words}"] = {"type": "DMT", "special": special, "k": k}
    found["promot"] = {"type": "ProMoT", "target": special}
    return found


def one_task(target: str) -> dict[str, dict[str, Any]]:
    """Ways to tune one task alone, by name: plain, ProMoT, and the controls of its source."""
    aim = [target]
    return {
        f"{target}: plain": {"type": "MultiTask"},
        f"{target}: promot": {"type": "ProMoT", "target": aim},
        f"{target}: promot, prompt not frozen": {"type": "ProMoT", "target": aim, "frozen": False},
        f"{target}: lora first": {"type": "ProMoT", "target": aim, "carrier": "lora"},
        f"{target}: prompt alone": {"type": "Prompted", "target": aim, "weights": False},
        f"{target}: prompt and weights": {"type": "Prompted", "target": aim, "weights": True},
    }


def comparison(
    experiment: Experiment, prepared: Prepared, groups: Groups, seeds: int, controls: bool
) -> Experiment:
    """The experiment with each strategy as a method of one training, confirmed with fresh seeds."""
    within = space(experiment, prepared.domains)
    mixture = within.project(within.prior.array())
    alone = {name: float(name == groups.target) for name in within.names}
    methods = {
        name: (settings, mixture.as_dict())
        for name, settings in strategies(groups, within.names).items()
    }
    if controls:
        methods |= {name: (s, alone) for name, s in one_task(groups.target).items()}
    search = experiment.search.model_copy(
        update={
            "searchers": tuple(
                SearcherSettings.model_validate(
                    {
                        "type": "Fixed",
                        "name": name,
                        "num_trials": 1,
                        "strategy": settings,
                        "mixtures": [shares],
                    }
                )
                for name, (settings, shares) in methods.items()
            ),
            "seeds": 1,
            "bill": None,
            "baselines": {PLAIN: mixture.as_dict()},
            "early_stopping": EarlyStopping(),
            "params": {},
            "confirm": ConfirmSettings(of="methods", seeds=seeds),
        }
    )
    return experiment.model_copy(update={"search": search, "strategy": StrategySettings()})


def at_end(domains: Sequence[str], split: str) -> Measure:
    """Mean loss of `domains` when the training has ended."""

    def measure(trial: Trial) -> float:
        metrics = trial.result.metrics if trial.result is not None else {}
        return group_loss(metrics, domains, split)

    return measure


def after(stage: int, domains: Sequence[str]) -> Measure:
    """Mean eval loss of `domains` at the end of a stage, the first being 0."""

    def measure(trial: Trial) -> float:
        points = trial.result.curve if trial.result is not None else ()
        own = [point for point in points if point.stage == stage]
        return group_loss(own[-1].metrics, domains) if own else float("nan")

    return measure


def leak(domains: Sequence[str]) -> Measure:
    """Mean share of outputs on `domains` that take the target's format, 0 to 1."""

    def measure(trial: Trial) -> float:
        metrics = trial.result.metrics if trial.result is not None else {}
        shares = [metrics.get(f"eval/{name}/format_leak", float("nan")) for name in domains]
        return float(sum(shares) / len(shares))

    return measure


def claims(
    groups: Groups, split: str, name: Callable[[str], str], base: float, leaks: bool
) -> list[Claim]:
    """What the sources say, arXiv:2310.05492 first.

    Args:
        groups: of the domains.
        split: whose losses decide between methods.
        name: the row of a method.
        base: mean eval loss of the other tasks before any training.
        leaks: whether the format of the task that is tuned alone was looked for.
    """
    first, order = groups.special[:1], ["sequential", MIXED]
    special, general = at_end(groups.special, split), at_end(groups.general, split)
    target, others = at_end((groups.target,), split), at_end(groups.others, split)
    end, boundary = at_end(first, "eval"), after(0, first)
    plain, dmt = name(PLAIN), "dmt 1/256"
    told, kept = " and ".join(groups.special), " and ".join(groups.general)

    kinds = {id(special): "special", id(general): "general", id(target): "target"}

    def between(words: str, a: str, b: str, measure: Measure) -> Claim:
        return Claim(words, a, b, measure, measure, kinds.get(id(measure), "others"))

    found = [
        Claim(
            f"sequential forgets {first[0]} after its stage",
            *order[:1] * 2,
            boundary,
            end,
            "within",
        ),
        between(f"{told}: mixed-sequential better than sequential", order[1], order[0], special),
        between(f"{told}: multi-task better than mixed-sequential", plain, order[1], special),
        between(f"{kept}: mixed-sequential better than multi-task", order[1], plain, general),
        between(f"{told}: DMT (1/256) forgets less than mixed-sequential", dmt, order[1], special),
        between(
            f"{told}: DMT (1/4) forgets less than mixed-sequential", "dmt 1/4", order[1], special
        ),
        between(f"{told}: multi-task better than DMT (1/256)", plain, dmt, special),
        between(f"{kept}: DMT (1/256) better than multi-task", dmt, plain, general),
        between(f"{told}: more replay is better, k 1 than 1/256", "dmt 1", dmt, special),
        between(f"{kept}: more replay is worse, k 1/256 than 1", dmt, "dmt 1", general),
    ]
    alone = {key: f"{groups.target}: {key}" for key in ("plain", "promot", "lora first")}
    joint, thawed = f"{groups.target}: prompt and weights", alone["promot"] + ", prompt not frozen"

    def before(trial: Trial) -> float:
        return base

    found += [
        Claim(
            "one task tuned: the others get worse than before",
            *[alone["plain"]] * 2,
            before,
            at_end(groups.others, "eval"),
            "within",
        ),
        between(
            "ProMoT: the others are better than by plain tuning",
            alone["promot"],
            alone["plain"],
            others,
        ),
        between(
            f"ProMoT: {groups.target} is better than by plain tuning",
            alone["promot"],
            alone["plain"],
            target,
        ),
        between(
            "ProMoT: the others are better than with LoRA first",
            alone["promot"],
            alone["lora first"],
            others,
        ),
        between(
            "ProMoT: the others are better than by joint tuning", alone["promot"], joint, others
        ),
        between(
            "ProMoT: the others are better with the prompt frozen", alone["promot"], thawed, others
        ),
    ]
    if leaks:
        share = leak(groups.others)
        words = "ProMoT: less format leak than plain tuning (share)"
        found.append(Claim(words, alone["promot"], alone["plain"], share, share, "leak"))
    return found


def write_figures(known: Facts, groups: Groups, folder: Path) -> list[Path]:
    """`tradeoff.png`, and `one_task.png` where one task was tuned alone."""
    folder.mkdir(parents=True, exist_ok=True)
    told = rows(known)
    single = [row for row in told if row.name.startswith(f"{groups.target}: ")]
    mixed = [row for row in told if row not in single and row.name != "uniform"]
    pairs: list[tuple[str, Sequence[Row], tuple[str, Sequence[str]], tuple[str, Sequence[str]]]] = [
        ("tradeoff.png", mixed, ("special", groups.special), ("general", groups.general)),
        ("one_task.png", single, ("the task", (groups.target,)), ("the others", groups.others)),
    ]
    written = []
    for name, shown, across, up in pairs:
        figure = tradeoff(shown, across, up, known.base)
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            written.append(folder / name)
    return written


def suite(folder: Path) -> Experiment:
    """The embedded suite, evaluated five times in a training on a part of its eval rows."""
    found = describe(folder, 5, 0, 0, 0)
    training = found.training.model_copy(
        update={"eval_steps": RECIPE.steps // 5, "eval_rows": 128, "num_virtual_tokens": 8}
    )
    study = found.study.model_copy(update={"name": "strategies"})
    plain = found.model_copy(update={"training": training, "study": study})
    return Experiment.model_validate(
        {**plain.model_dump(), "format_leak": {**SORT_FORMAT, "max_new_tokens": 4}}
    )


def yours(config: Path) -> Experiment:
    """The user's experiment; says what of it is not used."""
    experiment = load(config)
    unused = {"searchers", "num_trials", "seeds", "bill", "early_stopping", "confirm", "baselines"}
    unused |= {"params"}
    given = [f"search.{name}" for name in sorted(experiment.search.model_fields_set & unused)]
    given += [name for name in ("strategy",) if name in experiment.model_fields_set]
    if given:
        named = ", ".join(given)
        console.print(f"{config}: {named} not used, the comparison has its own")
    return experiment


def main(
    config: Annotated[Path | None, typer.Option(help="An experiment of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/strategies"),
    special: Annotated[str, typer.Option(help="Specialities, in order.")] = "cipher,edges",
    target: Annotated[str | None, typer.Option(help="The task that is tuned alone.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds of each strategy.")] = 3,
    controls: Annotated[bool, typer.Option(help="One task alone: ProMoT, its controls.")] = True,
    resume: Annotated[bool, typer.Option(help="Go on with the study in the folder.")] = False,
) -> None:
    """Compare the strategies and say which claims of their sources hold here."""
    with told():
        base = yours(config) if config else suite(folder)
        study = base.study.model_copy(update={"output_dir": str(folder / "study")})
        base = base.model_copy(update={"study": study})
        single = target or (None if config else "sort")
        goal = base.search.goal()
        weights = {name: goal.weight(name) for name in base.names}
        groups = grouped(base.names, weights, special, single)
        experiment = comparison(base, prepare(base), groups, seeds, controls)
        outcome = run(experiment, resume)
        known = facts(read(outcome.folder))
        console.print(methods_report(known))
        console.print(*stages(known, groups))
        leaks = experiment.format_leak
        console.print(verdicts(known, groups, leaks.target if leaks else None))
        for path in write_figures(known, groups, outcome.folder / "figures"):
            console.print(f"figure  {path}", soft_wrap=True)
        look(experiment)


def stages(known: Facts, groups: Groups) -> list[RenderableType]:
    """What was forgotten, in all; stage by stage for those that the claims are about."""
    found = courses(known)
    named = {each.name: each for each in found}
    parts: list[RenderableType] = [summary(found)] if found else []
    for name in ("sequential", "dmt 1/256", "dmt 1/4", f"{groups.target}: promot"):
        if name in named:
            parts.append(matrix(named[name], explained=False))
            parts += [table for table in (swapped(named[name]),) if table is not None]
    return [*parts, "Every strategy's stages: raymix report, with the study's folder."]


def verdicts(known: Facts, groups: Groups, leaks: str | None) -> RenderableType:
    """The table of claims; `leaks`: the domain whose format was looked for."""
    told = rows(known)
    split = "test" if any("test/" in key for row in told for key in _metrics(row)) else "eval"

    def name(of: str) -> str:
        found = (row.name for row in told if of in row.name.split(" = "))
        return next(found, of)

    base = group_loss(known.base, groups.others)
    asked = claims(groups, split, name, base, leaks == groups.target)
    return claims_table(findings(told, asked), f"What the sources say, and what was seen ({split})")


def _metrics(row: Row) -> Mapping[str, float]:
    result = row.trials[0].result
    return result.metrics if result is not None else {}


if __name__ == "__main__":
    typer.run(main)
