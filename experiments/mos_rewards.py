"""MoS's rewards singly and together, by both objectives, and MoSpec against MoS on its target.

On the embedded suite, on Ray pools; a few minutes on two cores. Every arm is one training, with
each seed, and is held against the proportional mixture with the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ideal_ablations import answer
from quickstart import describe
from rich.console import Console
from rich.table import Table

from raymix.cli import run as tune
from raymix.core.mixture import Mixture
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.experiment.config import ConfirmSettings, Experiment, SearcherSettings
from raymix.report.layout import table_of
from raymix.report.style import COLOURS, DPI, GREY, STYLE, matplotlib_of
from raymix.testing.grid import Grid, read_grid

EVERY = 15  # steps between updates: ten of them in a training of the suite
REWARDS: Mapping[str, tuple[str, ...]] = {
    "transferability": ("transferability",),
    "difficulty": ("difficulty",),
    "trajectory": ("trajectory",),
    "all three": ("transferability", "difficulty", "trajectory"),
}
OBJECTIVES: Mapping[str, dict[str, Any]] = {
    # A fifth of the way to R / sum(R) in each update; as published it hardly moves in so short a
    # training.
    "mos": {"every": EVERY, "relax": 0.2},
    "pg": {"every": EVERY, "objective": "pg", "lr": 0.02, "steps": 20, "entropy": 0.1},
}
PUBLISHED = "mos, as published"
SPECIAL = (("mos", "transferability"), ("mos", "all three"), ("pg", "transferability"))
PROPORTIONAL = "proportional"
NOTE = (
    "shares: mean over the steps. Losses: eval, in nats per token. regret: of the mean mixture, by "
    "the grid. less proportional: mean loss less that of the proportional mixture, 95% interval"
)
console = Console(width=116)


def arm(objective: str, reward: str) -> str:
    """The name of an arm of MoS."""
    return f"{objective}, {reward}"


def special(objective: str, reward: str) -> str:
    """The name of the same arm with a target."""
    return f"MoSpec {arm(objective, reward)}"


def arms(target: str) -> dict[str, dict[str, Any]]:
    """Fields of `MoS` by name of the arm."""
    found: dict[str, dict[str, Any]] = {
        arm(objective, reward): {"rewards": rewards, **fields}
        for objective, fields in OBJECTIVES.items()
        for reward, rewards in REWARDS.items()
    }
    found[PUBLISHED] = {}
    for pair in SPECIAL:
        found[special(*pair)] = {**found[arm(*pair)], "target": target, "held_out": False}
    return found


def with_arms(experiment: Experiment, target: str, folder: Path) -> Experiment:
    """The experiment with every arm as a method; the mixture is seen at each update."""
    searchers = tuple(
        SearcherSettings(
            type="Online", name=name, settings={"reweighter": {"type": "MoS", **fields}}
        )
        for name, fields in arms(target).items()
    )
    search = experiment.search.model_copy(
        update={"searchers": searchers, "confirm": ConfirmSettings(top_k=0, seeds=0)}
    )
    training = experiment.training.model_copy(update={"eval_steps": EVERY})
    study = experiment.study.model_copy(update={"name": folder.name, "output_dir": str(folder)})
    return experiment.model_copy(update={"search": search, "training": training, "study": study})


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    `mean`: the mixture over its steps. `path`: steps, and the shares [steps, K] in force from
    them on. `losses`: on eval, by domain.
    """

    score: float
    losses: Mapping[str, float]
    mean: Mixture
    path: tuple[list[int], Vector]


def run_of(trial: Trial) -> Run:
    """What came of a trial."""
    result = trial.result
    if result is None or not trial.finished:
        raise SystemExit(f"{trial.method} failed: {result.error if result else 'not trained'}")
    names = trial.mixture.names
    shares = np.array([[p.metrics[f"mix/{name}/share"] for name in names] for p in result.curve])
    losses = {name: result.metrics[f"eval/{name}/loss"] for name in names}
    steps = [0, *(point.step for point in result.curve)]
    shares = np.vstack([trial.mixture.array(), shares])
    mean = result.mean_mixture or trial.mixture
    return Run(trial.score, losses, mean.ordered(names), (steps, shares))


def table(found: Mapping[str, Sequence[Run]], grid: Grid, target: str) -> Table:
    """Every arm: where its mixture went, and what came of it."""
    right = [*grid.names, "mean loss", f"{target} loss", "regret", "less proportional"]
    shown = table_of(f"means over {len(found[PROPORTIONAL])} seeds", ["arm"], right, NOTE)
    for name in sorted(found, key=lambda name: np.mean([run.score for run in found[name]])):
        own = found[name]
        shares = np.mean([run.mean.array() for run in own], axis=0)
        less = difference(own, found[PROPORTIONAL])
        shown.add_row(
            name,
            *(f"{share:.2f}".removeprefix("0") for share in shares),
            f"{np.mean([run.score for run in own]):.3f}",
            f"{np.mean([run.losses[target] for run in own]):.3f}",
            f"{np.mean([grid.regret(run.mean, 'test') for run in own]):.3f}",
            "" if name == PROPORTIONAL else str(answer(less)),
        )
    return shown


def difference(a: Sequence[Run], b: Sequence[Run]) -> Vector:
    """Scores of `a` less those of `b`, seed by seed; below 0, `a` is better."""
    found: Vector = np.array([run.score for run in a]) - np.array([run.score for run in b])
    return found


def findings(found: Mapping[str, Sequence[Run]], target: str) -> Iterator[str]:
    """One sentence for each question. A seed counts once: its value is the mean over objectives."""
    start = found[PROPORTIONAL][0].mean.array()
    moved = max(np.abs(run.path[1] - start).max() for run in found[PUBLISHED])
    yield f"As published, no share is ever further than {moved:.3f} from where it began."
    for objective in OBJECTIVES:
        scores = {reward: _scores(found, [objective], reward) for reward in REWARDS}
        yield f"By {objective}: {_best(scores)}"
    scores = {reward: _scores(found, list(OBJECTIVES), reward) for reward in REWARDS}
    yield f"By both objectives: {_best(scores)}"
    together = scores.pop("all three")
    best = min(scores, key=lambda reward: float(scores[reward].mean()))
    said = answer(together - scores[best])
    yield f"All three rewards together beat the best of them alone: {said.word()} ({said})."
    said = answer(together - np.mean(list(scores.values()), axis=0))
    yield f"They beat a reward taken blindly (the mean of the three): {said.word()} ({said})."
    said = answer(_scores(found, ["pg"], *REWARDS) - _scores(found, ["mos"], *REWARDS))
    yield f"The policy gradient beats the published update: {said.word()} ({said})."
    for pair in SPECIAL:
        said = answer(_losses(found[special(*pair)], target) - _losses(found[arm(*pair)], target))
        where = f"'{target}' ({arm(*pair)})"
        yield f"MoSpec lowers the loss of its target {where}: {said.word()} ({said})."
    with_target = [_losses(found[special(*pair)], target) for pair in SPECIAL]
    without = [_losses(found[arm(*pair)], target) for pair in SPECIAL]
    said = answer(np.mean(with_target, axis=0) - np.mean(without, axis=0))
    yield f"MoSpec lowers it in these settings together: {said.word()} ({said})."


def _scores(found: Mapping[str, Sequence[Run]], objectives: Sequence[str], *rewards: str) -> Vector:
    """Mean scores [seeds] of the arms of these objectives and rewards."""
    chosen = [found[arm(objective, reward)] for objective in objectives for reward in rewards]
    mean: Vector = np.mean([[run.score for run in runs] for runs in chosen], axis=0)
    return mean


def _losses(runs: Sequence[Run], domain: str) -> Vector:
    return np.array([run.losses[domain] for run in runs])


def _best(scores: Mapping[str, Vector]) -> str:
    """Which single reward is best, and whether it is by more than noise."""
    single = [reward for reward in scores if reward != "all three"]
    first, second = sorted(single, key=lambda reward: float(scores[reward].mean()))[:2]
    said = answer(scores[first] - scores[second])
    return f"{first} is the best single reward, before {second}: {said.word()} ({said})."


def figure(found: Mapping[str, Sequence[Run]], names: Sequence[str], path: Path) -> None:
    """The mixture over the steps: a panel for each arm, thin lines for the seeds."""
    matplotlib, new = matplotlib_of()
    panels = [name for name in found if name != PROPORTIONAL]
    start = found[PROPORTIONAL][0].mean.array()
    with matplotlib.rc_context(STYLE):
        drawn = new(figsize=(11.5, 7.2))
        axes = drawn.subplots(3, 4, sharex=True, sharey=True)
        for axis, name in zip(axes.ravel(), panels, strict=True):
            axis.set_title(name)
            for place, domain in enumerate(names):
                colour = COLOURS[place]
                axis.axhline(start[place], color=colour, linewidth=0.8, linestyle=":")
                lines = [(run.path[0], run.path[1][:, place]) for run in found[name]]
                for steps, shares in lines:
                    _line(axis, steps, shares, color=colour, alpha=0.35, linewidth=0.8)
                mean = np.mean([shares for _, shares in lines], axis=0)
                _line(axis, lines[0][0], mean, color=colour, linewidth=1.8, label=domain)
        for axis in axes[:, 0]:
            axis.set_ylabel("share")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        dots = matplotlib.lines.Line2D([], [], color=GREY, linestyle=":")
        drawn.legend([*handles, dots], [*labels, PROPORTIONAL], loc="outside lower center", ncols=6)
        drawn.savefig(path, dpi=DPI)


def _line(axis: Any, steps: Sequence[int], shares: Vector, **look: Any) -> None:
    """In steps: a mixture holds from one update to the next, and a point is told after its own."""
    axis.plot(steps, shares, drawstyle="steps-post", **look)


def main(
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/mos_rewards"),
    domains: Annotated[int, typer.Option(help="3, 4 or 5.")] = 5,
    target: Annotated[str, typer.Option(help="The domain that MoSpec trains for.")] = "edges",
    seeds: Annotated[int, typer.Option(help="Seeds of every arm, one study each.")] = 3,
    resume: Annotated[bool, typer.Option(help="Go on with the studies in the folder.")] = False,
) -> None:
    """Compare the rewards and answer each question in a sentence."""
    grid = read_grid(domains)
    if target not in grid.names:
        raise typer.BadParameter(f"--target '{target}' is none of {', '.join(grid.names)}")
    found: dict[str, list[Run]] = {}
    for seed in range(seeds):
        asked = with_arms(describe(folder, domains, 1, 0, seed), target, folder / f"mos-{seed}")
        history = tune(asked, resume).history
        trials = {trial.method: trial for trial in history}
        for name in (PROPORTIONAL, *arms(target)):
            found.setdefault(name, []).append(run_of(trials[name]))
    console.print(table(found, grid, target))
    for sentence in findings(found, target):
        console.print(sentence, soft_wrap=True)
    path = folder / "trajectories.png"
    figure(found, grid.names, path)
    console.print(f"figure: {path}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
