"""The measured grid of a problem: what any searcher found, judged without a training.

For the skill suite with K = 3, 4 and 5 domains, and for the problem of `testing.transfer`, the
losses after a training on every mixture of a lattice were measured with three seeds, and with eight
fresh ones on the best mixture, the uniform and the proportional. `experiments/measure_grid.py`
makes the files `grid_k<K>.csv` that lie beside this one, `experiments/measure_transfer.py` the
other problem's.

Between lattice points losses are interpolated linearly on the Kuhn triangulation, so that no
mixture is better than the best lattice point and no regret is negative.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymix.core.codec import fingerprint
from raymix.core.errors import StudyError
from raymix.core.mixture import Mixture
from raymix.core.simplex import Vector, lattice
from raymix.testing.skills import domain_names, objective_weights
from raymix.testing.suite import suite_fingerprint

PARTS: Mapping[int, int] = {3: 10, 4: 6, 5: 5}  # shares on the lattice are multiples of 1/PARTS[K]
GRID_SEEDS = (0, 1, 2)
FRESH_SEEDS = (100, 101, 102, 103, 104, 105, 106, 107)
OPTIMUM, UNIFORM, PROPORTIONAL = "optimum", "uniform", "proportional"
SPLITS = ("eval", "test")
# The code on which a measured loss depends, as patterns below the package's folder.
_CODE = ("core/*.py", "data/*.py", "train/*.py", *(f"testing/{n}.py" for n in ("skills", "tiny")))


@dataclass(frozen=True)
class Measured:
    """One training of the grid: a line of the file.

    `kind` is "grid", or which mixture it is that was trained with a fresh seed. `losses`: by
    split, of each domain [K], in nats per token.
    """

    kind: str
    seed: int
    shares: tuple[float, ...]
    losses: Mapping[str, tuple[float, ...]]

    @property
    def key(self) -> tuple[str, int, tuple[float, ...]]:
        """What tells the trainings apart; shares as they stand in the file."""
        return (self.kind, self.seed, tuple(round(share, 6) for share in self.shares))


@dataclass(frozen=True)
class Problem:
    """What is measured on a grid.

    `path`: the grid's file. Shares on the lattice are multiples of 1 / `parts`. `objective`: weight
    of each domain's loss. `fingerprint`: of the data, base model and training. `script` measures.
    """

    path: Path
    names: tuple[str, ...]
    parts: int
    objective: Mapping[str, float]
    fingerprint: str
    script: str = "experiments/measure_grid.py"

    @property
    def points(self) -> Vector:
        """The mixtures of the lattice [P, K]."""
        return lattice(len(self.names), self.parts)

    def score(self, losses: Vector) -> Vector:
        """The objective [...] of losses [..., K]: the mean over the domains that count."""
        score: Vector = losses @ np.array([self.objective[name] for name in self.names])
        return score


@dataclass(frozen=True)
class Margin:
    """By how much the optimum beats the better of uniform and proportional on the fresh seeds.

    `difference` and `standard_error` are of the paired differences, `deviation` the larger of the
    two standard deviations of a single run; all in nats per token.
    """

    baseline: str
    difference: float
    standard_error: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Losses over the simplex of a problem.

    `points` [P, K] are the lattice's mixtures; `losses` by split [P, seeds, K]; `fresh` by mixture
    and split [fresh seeds, K]. `suite` and `code`: fingerprints at the time of measuring.
    """

    problem: Problem
    points: Vector
    losses: Mapping[str, Vector]
    fresh: Mapping[str, Mapping[str, Vector]]
    suite: str
    code: str

    @property
    def names(self) -> tuple[str, ...]:
        """The domains, in the order of every array [K]."""
        return self.problem.names

    def score(self, losses: Vector) -> Vector:
        """The objective [...] of losses [..., K]: the mean over the domains that count."""
        return self.problem.score(losses)

    def scores(self, split: str = "eval") -> Vector:
        """The objective of each lattice point [P], the mean over the grid's seeds."""
        return self.score(self.losses[split].mean(axis=1))

    def optimum(self) -> Mixture:
        """The lattice point with the best objective on eval."""
        return Mixture.normalised(self.names, self.points[int(self.scores().argmin())])

    def losses_at(
        self, mixture: Mixture, split: str = "eval", seed: int | None = None
    ) -> dict[str, float]:
        """Interpolated losses by domain; `seed` None: the mean over the grid's seeds."""
        table = self.losses[split]
        chosen = table.mean(axis=1) if seed is None else table[:, GRID_SEEDS.index(seed)]
        rows = {tuple(point): row for point, row in zip(self._counts(), chosen, strict=True)}
        corners = kuhn_corners(mixture.ordered(self.names).array() * self.problem.parts)
        found = sum((share * rows[corner] for corner, share in corners), np.zeros(len(self.names)))
        return dict(zip(self.names, found.tolist(), strict=True))

    def regret(self, mixture: Mixture, split: str = "eval") -> float:
        """The objective at `mixture` minus that at the grid's best point, in nats per token."""
        losses = self.losses_at(mixture, split)
        here = self.score(np.array([losses[name] for name in self.names]))
        return float(here - self.scores(split).min())

    def margin(self, split: str = "test") -> Margin:
        """The optimum against the better baseline, on seeds that did not choose it."""
        scores = {kind: self.score(losses[split]) for kind, losses in self.fresh.items()}
        baseline = min((UNIFORM, PROPORTIONAL), key=lambda kind: float(scores[kind].mean()))
        best, other = scores[OPTIMUM], scores[baseline]
        difference = other - best
        return Margin(
            baseline,
            float(difference.mean()),
            float(difference.std(ddof=1) / np.sqrt(len(difference))),
            float(max(best.std(ddof=1), other.std(ddof=1))),
        )

    def _counts(self) -> list[tuple[int, ...]]:
        counts = np.rint(self.points * self.problem.parts).astype(int)
        return [tuple(row) for row in counts.tolist()]


def kuhn_corners(scaled: Vector) -> list[tuple[tuple[int, ...], float]]:
    """Lattice points around `scaled` [K], and their shares in it, which sum to 1.

    `scaled` is a mixture times the lattice's parts. In the coordinates of partial sums the simplex
    is an order simplex, which Kuhn's triangulation of the cubes cuts without remainder: start at
    the floor and raise the coordinates in the order of their fractions.
    """
    total = round(float(scaled.sum()))
    sums = np.cumsum(scaled)[:-1].round(9)
    corner = np.floor(sums)
    fractions = sums - corner
    # Of equal fractions the later is raised first: partial sums must not decrease.
    order = np.lexsort((-np.arange(len(sums)), -fractions))
    edges = np.concatenate(([1.0], fractions[order], [0.0]))
    found = []
    for i, share in enumerate(edges[:-1] - edges[1:]):
        if i:
            corner[order[i - 1]] += 1
        if share > 0:
            counts = np.diff(np.concatenate(([0.0], corner, [total])))
            found.append((tuple(int(count) for count in counts), float(share)))
    return found


def grid_path(domains: int) -> Path:
    """The file of the grid with this many domains."""
    return Path(__file__).with_name(f"grid_k{domains}.csv")


def code_fingerprint() -> str:
    """16 hexadecimal digits of the source on which a measured loss depends."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for pattern in _CODE for path in root.glob(pattern))
    return fingerprint(*([path.name, path.read_text(encoding="utf-8")] for path in files))


def header(names: Sequence[str]) -> list[str]:
    """The columns of a grid file."""
    losses = [f"{split}/{name}" for split in SPLITS for name in names]
    return ["kind", "seed", *(f"share/{name}" for name in names), *losses]


def to_line(row: Measured) -> list[str]:
    """One training as the cells of a line: shares to 6 digits, losses to 4 (0.1 millinats)."""
    losses = [f"{loss:.4f}" for split in SPLITS for loss in row.losses[split]]
    return [row.kind, str(row.seed), *(f"{share:.6f}" for share in row.shares), *losses]


def read_rows(path: Path) -> tuple[dict[str, str], list[Measured]]:
    """What was measured, and with what: the fingerprints on the first line, then the trainings."""
    with path.open(encoding="utf-8", newline="") as file:
        about: dict[str, str] = json.loads(file.readline().removeprefix("#"))
        cells = csv.reader(file)
        count = sum(column.startswith("share/") for column in next(cells))
        return about, [_measured(row, count) for row in cells]


def _measured(cells: Sequence[str], count: int) -> Measured:
    numbers = tuple(float(cell) for cell in cells[2:])
    losses = {s: numbers[count * (i + 1) : count * (i + 2)] for i, s in enumerate(SPLITS)}
    return Measured(cells[0], int(cells[1]), numbers[:count], losses)


def read_grid(domains: int, path: Path | None = None) -> Grid:
    """The grid with K = `domains`, 3, 4 or 5; `path` None: the committed one.

    Raises:
        StudyError: if the suite is no longer the one that was measured.
    """
    return read(suite_problem(domains, path))


def suite_problem(domains: int, path: Path | None = None) -> Problem:
    """The skill suite with K = `domains`, 3, 4 or 5; `path` None: of the committed grid."""
    names = domain_names(domains)
    return Problem(
        path or grid_path(domains),
        names,
        PARTS[domains],
        objective_weights(names),
        suite_fingerprint(domains),
    )


def read(problem: Problem) -> Grid:
    """The grid of `problem`, from its file.

    Raises:
        StudyError: if the problem is no longer the one that was measured.
    """
    about, rows = read_rows(problem.path)
    if about["suite"] != problem.fingerprint:
        raise StudyError(
            f"{problem.path.name} was measured on another suite ({about['suite']}, now "
            f"{problem.fingerprint}); run {problem.script} again"
        )
    points = problem.points
    table = {row.key: row for row in rows}
    return Grid(
        problem=problem,
        points=points,
        losses={s: np.array([_over_seeds(table, p, s) for p in points]) for s in SPLITS},
        fresh={k: _fresh(rows, k) for k in (OPTIMUM, UNIFORM, PROPORTIONAL)},
        suite=about["suite"],
        code=about["code"],
    )


def _over_seeds(
    table: Mapping[tuple[str, int, tuple[float, ...]], Measured], point: Vector, split: str
) -> list[tuple[float, ...]]:
    keys = (Measured("grid", seed, tuple(point.tolist()), {}).key for seed in GRID_SEEDS)
    return [table[key].losses[split] for key in keys]


def _fresh(rows: Sequence[Measured], kind: str) -> dict[str, Vector]:
    chosen = sorted((row for row in rows if row.kind == kind), key=lambda row: row.seed)
    return {split: np.array([row.losses[split] for row in chosen]) for split in SPLITS}
