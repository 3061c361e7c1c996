"""Every method on the planted-transfer problem: the mixture it ends with, against the grid.

Makes experiments/planted_transfer.md, in about eight minutes on one core. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ideal_ablations import answer
from rich.console import Console
from rich.markdown import Markdown

from raymix.cli import run
from raymix.core.job import Json
from raymix.core.mixture import Mixture, Space
from raymix.core.signals import Decision, Signal, Signals
from raymix.core.trial import History, Role, Trial
from raymix.experiment.config import Experiment
from raymix.reweight.doremi import reweighted
from raymix.reweight.trained import sampling_of
from raymix.testing.bench import Bench, open_bench, training
from raymix.testing.grid import FRESH_SEEDS, Grid
from raymix.testing.skills import SPLITS
from raymix.testing.suite import RECIPE, SuitePaths
from raymix.testing.transfer import read_transfer, transfer_fingerprint, write_transfer

OUT = Path(__file__).with_suffix(".md")
TRIALS = 12
SEEDS = FRESH_SEEDS[:3]
console = Console(width=132)


@dataclass(frozen=True)
class GroupDro:
    """DoReMi without its reference: weights follow the loss itself. A control, not a method."""

    eta: float = 1.0
    smoothing: float = 1e-3
    every: int = 1
    needs: frozenset[Signal] = frozenset({Signal.DOMAIN_LOSS})
    same_step: bool = False
    targets: tuple[str, ...] = ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """Uniform loss weights; the state is their logarithms."""
        even = space.uniform()
        return Decision(sampling_of(space, "uniform"), loss_weights=even), np.log(
            even.array()
        ).tolist()

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """The weights after one window."""
        losses = np.where(signals.tokens > 0, signals.values[Signal.DOMAIN_LOSS], np.nan)
        logs = reweighted(np.array(state), losses, self.eta, self.smoothing)
        weights = Mixture.normalised(signals.mixture.names, np.exp(logs))
        return Decision(loss_weights=weights), logs.tolist()


def _proxy(**reweighter: Any) -> dict[str, Any]:
    return {"type": "Proxy", "reweighter": reweighter}


def _online(**reweighter: Any) -> dict[str, Any]:
    return {"type": "Online", "reweighter": {"type": "MoS", **reweighter}}


SHORT = {"every": 10, "relax": 0.3}
PG = {"every": 10, "objective": "pg", "lr": 0.02, "steps": 20, "entropy": 0.05}

ARMS: Mapping[str, tuple[dict[str, Any], str]] = {
    "dirichlet": ({"type": "Dirichlet"}, f"best of {TRIALS} uniform draws"),
    "tpe": ({"type": "Optuna", "startup": 6}, f"{TRIALS} trials, 4 of them its start-up"),
    "mossearch": ({"type": "MosSearch"}, f"{TRIALS} trials"),
    "ideal": ({"type": "Ideal"}, "default: fixed total, 3 rounds from proportional"),
    "ideal-search": (
        {"type": "Ideal", "line_search": True, "widths": (0.5, 1.0, 2.0)},
        "with line search",
    ),
    "doremi": (_proxy(type="DoReMi"), "as published: clipped, eta 1"),
    "doremi-slow": (_proxy(type="DoReMi", eta=0.1), "eta .1, which its authors advise"),
    "doremi-signed": (_proxy(type="DoReMi", clip=False), "excess not clipped, eta 1"),
    "group-dro": (_proxy(type="planted_transfer:GroupDro"), "DoReMi without a reference, eta 1"),
    "doge": (_proxy(type="DoGE", mu=0.01), "as released: mu .01"),
    "doge-slow": (_proxy(type="DoGE", mu=0.1), "mu .1, for the larger learning rate"),
    "mos": (_online(), "as published: transferability, every 100 steps"),
    "mos-short": (_online(**SHORT), "transferability, every 10 steps, relax .3"),
    "mos-hard": (_online(rewards=["difficulty"], **SHORT), "difficulty, every 10 steps, relax .3"),
    "mos-pg": (_online(**PG), "transferability, policy gradient"),
    "mospec": (_online(target="narrow", held_out=False, **PG), "`narrow` as target, pg"),
}


def describe(suite: SuitePaths, folder: Path, seed: int) -> Experiment:
    """All methods as one study with this seed, in this process."""
    return Experiment.model_validate(
        {
            "study": {"name": f"transfer-{seed}", "seed": seed, "output_dir": str(folder)},
            "model_name_or_path": str(suite.model),
            "datasets": [
                {"domain": name, "path": str(suite.data(name, SPLITS[0]))}
                | {f"{split}_path": str(suite.data(name, split)) for split in SPLITS[1:]}
                for name in suite.names
            ],
            "mixture": {"budget": RECIPE.examples},
            "training": training(),
            "search": {
                "searchers": [{"name": name, **settings} for name, (settings, _) in ARMS.items()],
                "num_trials": TRIALS,
                "objective": {"weights": dict(suite.objective)},
                "confirm": {"top_k": 0, "seeds": 0},
            },
            "cluster": {"runner": "local"},
            "tracking": {"report_to": "none"},
            "cache_dir": str(suite.folder.parent / "cache"),
        }
    )


@dataclass(frozen=True)
class Ending:
    """What one method came to with one seed.

    `mixture`: the final one; of a method that moves it while training, the mean over its steps.
    `score`: of the training that it ended with. `trainings`: all that it asked for.
    """

    mixture: Mixture
    score: float
    trainings: int


def ending(history: History, method: str) -> Ending:
    """The final training of a proxy method, the only one of an online method, else the best."""
    own = [trial for trial in history if trial.method == method]
    asked = sum(trial.role is not Role.MEASURE for trial in own)
    last = history.seen_by(method).ranking()
    chosen = next(trial for trial in last if trial.method == method)
    return Ending(_trained_on(chosen), chosen.score, asked)


def _trained_on(trial: Trial) -> Mixture:
    moved = trial.result.mean_mixture if trial.result and trial.proposal.reweighter else None
    return moved or trial.mixture


@dataclass(frozen=True, eq=False)
class Judge:
    """Trains mixtures again with fresh seeds: between its points the grid is no judge.

    Near an edge a loss falls by a nat within one eighth, where linear interpolation sees little.
    """

    bench: Bench
    grid: Grid

    def regret(self, mixture: Mixture) -> float:
        """Test loss of `mixture` less that of the grid's best point, mean over fresh seeds."""
        return self._loss(mixture) - self._loss(self.grid.optimum())

    @cache  # noqa: B019 - it lives as long as the script
    def _loss(self, mixture: Mixture) -> float:
        weights = mixture.ordered(self.grid.names).weights
        found = [self.bench.train(weights, seed).metrics for seed in SEEDS]
        losses = [[each[f"test/{name}/loss"] for name in self.grid.names] for each in found]
        return float(self.grid.score(np.array(losses)).mean())


def table(
    found: Mapping[str, Sequence[Ending]], lost: Mapping[str, Sequence[float]], grid: Grid
) -> Iterator[str]:
    """The lines of a Markdown table; the least regret `lost` first."""
    names = " | ".join(grid.names)
    last = "regret | lowest, highest | by the grid | its own loss | trainings"
    yield f"| method | setting | {names} | {last} |"
    yield "|---|---|" + "---:|" * (len(grid.names) + 5)
    for method in sorted(found, key=lambda name: np.mean(lost[name])):
        ends = found[method]
        shares = np.mean([end.mixture.ordered(grid.names).array() for end in ends], axis=0)
        cells = [
            method,
            ARMS[method][1] if method in ARMS else "",
            *(_share(share) for share in shares),
            f"{np.mean(lost[method]):.3f}",
            f"{min(lost[method]):.3f}, {max(lost[method]):.3f}",
            f"{np.mean([grid.regret(end.mixture, 'test') for end in ends]):.3f}",
            f"{np.mean([end.score for end in ends]):.3f}",
            str(round(np.mean([end.trainings for end in ends]))),
        ]
        yield f"| {' | '.join(cells)} |"


def _share(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")


def verdicts(lost: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Which methods are better than uniform, which worse, and which cannot be told."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "cannot be told from noise": []}
    words = {"holds here": "better", "does not hold here": "worse"}
    for method in sorted(ARMS, key=lambda name: np.mean(lost[name])):
        said = answer(np.subtract(lost[method], lost["uniform"]))
        told[words.get(said.word(), said.word())].append(f"{method} ({said})")
    for word, methods in told.items():
        yield f"- {word}: {', '.join(methods) or 'none'}"


def text(
    found: Mapping[str, Sequence[Ending]], lost: Mapping[str, Sequence[float]], grid: Grid
) -> str:
    """The whole file; `lost`: regrets, in nats per token."""
    count = len(found["uniform"])
    best = grid.optimum()
    shares = ", ".join(f"{name} {_share(best.as_dict()[name])}" for name in grid.names)
    lines = [
        "# Every method on the planted-transfer problem",
        "",
        "Made by `python experiments/planted_transfer.py`, which writes this file; problem "
        f"`{transfer_fingerprint()}` (`raymix/testing/transfer.py`), {count} seeds.",
        "",
        f"Best point of the measured grid: {shares}; loss {grid.scores().min():.3f} on eval. The "
        "objective is the mean loss of `narrow`, `broad` and `echo`; `noise` does not count, which "
        "no method but those that see the objective (dirichlet, tpe, mossearch, ideal) can know.",
        "",
        "Shares are means over the seeds of the final mixture: the best that was trained "
        "(searchers), what the final training was given (doremi, doge, group-dro), the mean over "
        "the steps (mos). `regret`: that mixture trained again with fresh seeds "
        f"({', '.join(map(str, SEEDS))}): by how much its test loss is above that of the grid's "
        "best point, mean over seeds, nats per token. `by the grid`: the same without a training, "
        "interpolated between lattice points, which is too much where a share is small. `its own "
        "loss`: the objective on eval after the training that the method ended with (searchers "
        "chose it by that, so theirs flatters). "
        "`trainings`: of each seed, references and proxies included.",
        "",
        *table(found, lost, grid),
        "",
        "Regret less uniform's. The 95% interval is over the methods' own seeds; what the fresh "
        "seeds leave uncertain is shared by all and not in it.",
        "",
        *verdicts(lost),
        "",
    ]
    return "\n".join(lines)


def main(
    folder: Annotated[Path, typer.Option(help="Everything is written here.")] = Path(
        "runs/transfer"
    ),
    seeds: Annotated[int, typer.Option(help="Seeds, one study each.")] = 3,
    out: Annotated[Path, typer.Option(help="The table's file.", show_default=False)] = OUT,
    resume: Annotated[bool, typer.Option(help="Go on with the studies in the folder.")] = False,
) -> None:
    """Run every method with every seed, and write the table."""
    suite, grid = write_transfer(folder / "problem"), read_transfer()
    found: dict[str, list[Ending]] = {}
    for seed in range(seeds):
        history = run(describe(suite, folder / f"seed-{seed}", seed), resume).history
        for method in ("uniform", "proportional", *ARMS):
            found.setdefault(method, []).append(ending(history, method))
    judge = Judge(open_bench(suite, folder / "cache"), grid)
    lost = {name: [judge.regret(end.mixture) for end in ends] for name, ends in found.items()}
    out.write_text(text(found, lost, grid), encoding="utf-8")
    console.print(Markdown(out.read_text(encoding="utf-8")))


if __name__ == "__main__":
    typer.run(main)
