"""IDEAL's own questions as studies on the pool: step size, start, domains, epochs, more data.

By default on the embedded suite; `--config` asks them of your data and model. Every arm runs with
each seed, and what a free total lets grow is held against the same amount at the unchanged mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quickstart import describe
from rich.console import Console
from rich.table import Table
from scipy import stats

from raymix.cli import run as tune
from raymix.core.mixture import Mixture
from raymix.core.trial import Trial
from raymix.experiment.build import prepare, space
from raymix.experiment.config import ConfirmSettings, Experiment, SearcherSettings
from raymix.experiment.load import load
from raymix.report.style import matplotlib_of
from raymix.search.agreement import spearman
from raymix.study.record import Record, read
from raymix.testing.grid import read_grid

STEPS = (0.1, 0.15, 0.3, 0.5)
STARTS = {"unequal": "proportional", "equal": "uniform"}
console = Console(width=112)


def paper_arms(epoch: int) -> dict[str, dict[str, Any]]:
    """Settings of `Ideal` by name of the arm, all in paper mode; `epoch`: budget of one epoch."""
    arms: dict[str, dict[str, Any]] = {}
    for word, start in STARTS.items():
        for step in STEPS:
            arms[f"m={step} {word}"] = {"mode": "paper", "step": step, "start": start}
        for epochs in (1, 3):
            own = {"mode": "paper", "start": start, "budget": epochs * epoch}
            arms[f"epochs={epochs} {word}"] = own
    return arms


def our_arms() -> dict[str, dict[str, Any]]:
    """Fixed total, size-weighted and centred; with the two extensions."""
    return {
        "default": {},
        "small steps": {"step": 0.15, "rounds": 4},
        "line search": {"line_search": True, "step": 0.3},
        "trust region": {"trust_region": True},
    }


def with_arms(
    experiment: Experiment, arms: Mapping[str, Mapping[str, Any]], seeds: int, folder: Path
) -> Experiment:
    """The experiment with every arm as a searcher."""
    searchers = tuple(
        SearcherSettings(type="Ideal", name=name, settings=dict(settings))
        for name, settings in arms.items()
    )
    asked = {"searchers": searchers, "seeds": seeds, "confirm": ConfirmSettings(top_k=0, seeds=0)}
    search = experiment.search.model_copy(update=asked)
    study = experiment.study.model_copy(update={"output_dir": str(folder), "name": folder.name})
    return experiment.model_copy(update={"search": search, "study": study})


@dataclass(frozen=True)
class Run:
    """One arm with one seed: its start, where it ended, and the control of the end's size."""

    arm: str
    seed: int
    start: Trial
    end: Trial
    control: Trial | None
    steps: tuple[Trial, ...]

    @property
    def against(self) -> Trial:
        """What the end is compared with: the unchanged mixture at the same size."""
        return self.control or self.start

    @property
    def gain(self) -> float:
        """Score of the end less that of its comparison; negative is better."""
        return self.end.score - self.against.score


def runs(record: Record) -> Iterator[Run]:
    """What came of every arm; one that failed is left out, and told of."""
    for method, member in record.members.items():
        own = [t for t in record.history if t.method == method and t.finished]
        arm, seed = member.group, member.repeat
        kinds = {kind: [t for t in own if t.proposal.note["kind"] == kind] for kind in _KINDS}
        if not kinds["start"] or not kinds["step"]:
            console.print(f"{method} came to nothing: its trainings failed")
            continue
        start = kinds["start"][0]
        steps = [t for t in kinds["step"] if t.proposal.note["width"] > 0]
        # Paper mode goes to the end; ours keeps the best, which may be where it began.
        paper = arm.startswith(("m=", "epochs="))
        end = steps[-1] if paper else min((start, *steps), key=lambda t: t.score)
        control = kinds["control"][0] if kinds["control"] else None
        yield Run(arm, seed, start, end, control, tuple(steps))


_KINDS = ("start", "step", "control")


@dataclass(frozen=True)
class Answer:
    """A difference in the mean over paired runs, and half the width of its 95% interval."""

    mean: float
    margin: float
    count: int

    def __str__(self) -> str:
        """For instance `-0.081 ± 0.020`."""
        return f"{self.mean:+.3f} ± {self.margin:.3f}"

    def word(self) -> str:
        """Below 0, above it, or not to be told."""
        if not self.margin < abs(self.mean):
            return "cannot be told from noise"
        return "holds here" if self.mean < 0 else "does not hold here"


def answer(differences: Sequence[float]) -> Answer:
    """Student's interval of paired differences."""
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Answer(float(values.mean()) if len(values) else np.nan, np.inf, len(values))
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Answer(float(values.mean()), float(margin), len(values))


def paired(a: Sequence[Run], b: Sequence[Run], value: Any) -> Answer:
    """`value` of the runs `a` less that of `b`, seed by seed and start by start."""
    other = {_pair(run): value(run) for run in b}
    return answer([value(run) - other[_pair(run)] for run in a if _pair(run) in other])


def _pair(run: Run) -> tuple[str, int]:
    return run.arm.rpartition(" ")[2], run.seed


def spread(run: Run) -> float:
    """Imbalance between domains at the start: sd over domains of the relative change to base."""
    return float(run.start.result.metrics["eval/imbalance"]) if run.start.result else np.nan


def findings(found: Sequence[Run], fewer: Sequence[Run]) -> Iterator[str]:
    """One sentence for each of the paper's findings."""

    def arms(*names: str) -> list[Run]:
        return [run for run in found if run.arm in names]

    def both(name: str) -> list[Run]:
        return arms(*(f"{name} {word}" for word in STARTS))

    main = both("m=0.15")
    said = answer([run.gain for run in main])
    yield f"IDEAL's mixture beats as much data at the unchanged one: {said.word()} ({said})."
    grown = answer([run.against.score - run.start.score for run in main])
    yield f"More data at an unchanged mixture helps as well: {grown.word()} ({grown})."
    for step in (0.1, 0.3, 0.5):
        said = paired(main, both(f"m={step}"), lambda run: run.gain)
        yield f"A step of 0.15 is better than one of {step}: {said.word()} ({said})."
    for word in STARTS:
        said = answer([run.gain for run in arms(f"m=0.15 {word}")])
        yield f"It helps from {word} counts: {said.word()} ({said})."
    said = answer([run.gain for run in fewer])
    yield f"It helps with one domain fewer: {said.word()} ({said})."
    said = paired(both("epochs=1"), both("epochs=3"), spread)
    yield f"Three epochs spread the domains further apart than one: {said.word()} ({said})."
    said = paired(both("epochs=3"), both("epochs=1"), lambda run: run.gain)
    yield f"It gains more after three epochs than after one: {said.word()} ({said})."


def arms_table(found: Sequence[Run], title: str, regret: Any) -> Table:
    """Every arm: where it began, where it ended, at what size, and what that size alone gives."""
    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    columns = ["start", "end", "same size", "difference, 95%", "size", "mixture"]
    for name in [*columns, *(["regret"] if regret else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for arm in dict.fromkeys(run.arm for run in found):
        own = [run for run in found if run.arm == arm]
        shares = np.mean([run.end.mixture.array() for run in own], axis=0)
        amounts = [_amount(run.end) / _amount(run.start) for run in own]
        cells = [
            f"{np.mean([run.start.score for run in own]):.3f}",
            f"{np.mean([run.end.score for run in own]):.3f}",
            f"{np.mean([run.against.score for run in own]):.3f}",
            str(answer([run.gain for run in own])),
            f"x{np.mean(amounts):.2f}",
            " ".join(f"{share:.2f}".removeprefix("0") for share in shares),
        ]
        if regret:
            cells.append(f"{np.mean([regret(run.end.mixture) for run in own]):.3f}")
        table.add_row(arm, *cells)
    return table


def _amount(trial: Trial) -> float:
    drawn = trial.result.realised if trial.result else ()
    return float(sum(part.tokens for part in drawn))


def figure(found: Sequence[Run], path: Path) -> None:
    """Gain by step size and start, and predicted against realised changes of all steps."""
    _, new = matplotlib_of()
    drawn = new(figsize=(9.2, 4.0))
    left, right = drawn.subplots(1, 2)
    for place, (word, colour) in enumerate(zip(STARTS, ("#3b6fb6", "#c8553d"), strict=True)):
        for number, step in enumerate(STEPS):
            gains = [run.gain for run in found if run.arm == f"m={step} {word}"]
            at = number + 0.16 * (place - 0.5)
            left.plot([at] * len(gains), gains, "o", color=colour, alpha=0.45, markersize=4)
            name = f"{word} start" if not number else None
            left.plot([at], [np.mean(gains)], "D", color=colour, markersize=7, label=name)
    left.axhline(0, color="#888888", linewidth=1)
    left.set_xticks(range(len(STEPS)), [str(step) for step in STEPS])
    left.set_xlabel("step size m (paper mode, two rounds)")
    left.set_ylabel("score less that of the same size\nat the unchanged mixture (nats)")
    left.legend(frameon=False)
    points = np.array(list(_points(found)))
    right.axhline(0, color="#888888", linewidth=1)
    right.axvline(0, color="#888888", linewidth=1)
    right.plot(points[:, 0], points[:, 1], "o", color="#3b6fb6", alpha=0.35, markersize=3)
    rho = spearman(points[:, 0], points[:, 1])
    right.set_title(f"all steps and eval losses: rank correlation {rho:.2f}", fontsize=10)
    right.set_xlabel("predicted change of an eval loss (nats)")
    right.set_ylabel("realised change (nats)")
    drawn.tight_layout()
    drawn.savefig(path, dpi=150)


def _points(found: Sequence[Run]) -> Iterator[tuple[float, float]]:
    for run in found:
        for trial in run.steps:
            metrics = trial.result.metrics if trial.result else {}
            for name in trial.mixture.names:
                pair = [metrics.get(f"influence/{name}/{w}") for w in ("predicted", "realised")]
                if None not in pair:
                    yield tuple(pair)


def main(
    config: Annotated[Path | None, typer.Option(help="An experiment of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/ablations"),
    seeds: Annotated[int, typer.Option(help="Seeds of every arm.")] = 3,
    resume: Annotated[bool, typer.Option(help="Go on with the studies in the folder.")] = False,
) -> None:
    """Ask the paper's questions and answer each in a sentence."""
    if config:
        experiment = load(config)
        less = _with_one_fewer(experiment)
    else:
        experiment, less = (_suite(folder, domains) for domains in (5, 4))
    within = space(experiment, prepare(experiment).domains)
    epoch = sum(domain.size(within.budget.unit) for domain in within.domains)
    arms = {**paper_arms(epoch), **our_arms()}
    tune(with_arms(experiment, arms, seeds, folder / "all"), resume)
    whole = list(runs(read(folder / "all")))
    few = {name: arms[name] for name in (f"m=0.15 {word}" for word in STARTS)}
    tune(with_arms(less, few, seeds, folder / "fewer"), resume)
    fewer = list(runs(read(folder / "fewer")))
    grid = None if config else read_grid(5)

    def regret(mixture: Mixture) -> float:
        return grid.regret(mixture, "test") if grid else np.nan

    console.print(arms_table(whole, f"all {len(within.names)} domains", regret if grid else None))
    console.print(arms_table(fewer, "one domain fewer", None))
    for sentence in findings(whole, fewer):
        console.print(f"- {sentence}")
    figure(whole, folder / "ablations.png")
    console.print(f"figure  {folder / 'ablations.png'}")


def _suite(folder: Path, domains: int) -> Experiment:
    """The embedded suite, evaluated at the end of a training only."""
    found = describe(folder / f"suite-{domains}", domains, 0, 0, 0)
    training = found.training.model_copy(update={"eval_steps": None})
    return found.model_copy(update={"training": training})


def _with_one_fewer(experiment: Experiment) -> Experiment:
    """The experiment without its last domain."""
    gone = experiment.names[-1]
    weights = {n: w for n, w in experiment.search.objective.weights.items() if n != gone}
    plain = experiment.model_dump(mode="json")
    plain["datasets"] = plain["datasets"][:-1]
    plain["search"]["objective"]["weights"] = weights
    for name in ("bounds", "max_epochs", "prior"):
        if isinstance(plain["mixture"][name], dict):
            plain["mixture"][name].pop(gone, None)
    return Experiment.model_validate(plain)


if __name__ == "__main__":
    typer.run(main)
