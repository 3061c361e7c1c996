"""Measures the embedded suite on a lattice of mixtures: makes raymix/testing/grid_k{3,4,5}.csv.

About 900 trainings of one second; a stopped run goes on where it was. The best lattice point is
then trained with fresh seeds, as are the uniform and the proportional mixture.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache, partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from raymix.study.objective import domain_losses
from raymix.testing import grid
from raymix.testing.bench import Bench, open_bench
from raymix.testing.suite import SuitePaths, write_suite

HERE = grid.grid_path(3).parent
Task = tuple[SuitePaths, str, tuple[float, ...], int]  # suite, kind, shares [K], seed


@lru_cache(maxsize=4)
def _bench(suite: SuitePaths) -> Bench:
    """One bench for each process: loading takes longer than a training."""
    return open_bench(suite, suite.folder.parent / "cache")


def train_point(suite: SuitePaths, mixture: Sequence[float], seed: int) -> dict[str, float]:
    """Losses after one training, in nats per token, as `<split>/<domain>`."""
    metrics = _bench(suite).train(mixture, seed).metrics
    return {
        f"{split}/{name}": loss
        for split in grid.SPLITS
        for name, loss in domain_losses(metrics, split).items()
    }


def _measure(task: Task) -> grid.Measured:
    suite, kind, shares, seed = task
    found = train_point(suite, shares, seed)
    losses = {s: tuple(found[f"{s}/{name}"] for name in suite.names) for s in grid.SPLITS}
    return grid.Measured(kind, seed, shares, losses)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


class Changed(StrEnum):
    """What becomes of a file that was measured with other code, or another suite."""

    STOP = "stop"
    KEEP = "keep"
    RESTART = "restart"


def _start(path: Path, suite: SuitePaths, code: str, changed: Changed) -> list[grid.Measured]:
    """What the file holds already; a new file where there is none, or none that fits."""
    about = {"suite": suite.fingerprint, "code": code, "names": " ".join(suite.names)}
    if path.exists():
        before, rows = grid.read_rows(path)
        same_suite = before["suite"] == about["suite"]
        if before == about or (changed is Changed.KEEP and same_suite):
            return rows
        if changed is not Changed.RESTART:
            what = "code" if same_suite else "suite"
            raise SystemExit(f"{path.name}: measured with another {what}; see --changed")
    _write(path, about, suite.names, [])
    return []


def _write(
    path: Path, about: dict[str, str], names: Sequence[str], rows: Sequence[grid.Measured]
) -> None:
    whole = path.with_suffix(".tmp")
    with whole.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {json.dumps(about)}\n")
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(grid.header(names))
        lines.writerows(grid.to_line(row) for row in rows)
    whole.replace(path)


def _run(pool: Pool, path: Path, tasks: Sequence[Task], rows: list[grid.Measured]) -> None:
    """Trains what is missing; each result is in the file as soon as it is known."""
    done = {row.key for row in rows}
    missing = [t for t in tasks if grid.Measured(t[1], t[3], t[2], {}).key not in done]
    start = time.monotonic()
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        for row in pool.imap_unordered(_measure, missing):
            lines.writerow(grid.to_line(row))
            file.flush()
            rows.append(row)
    typer.echo(f"{path.name}: {len(missing)} trainings in {time.monotonic() - start:.0f} s")


def _best(rows: Sequence[grid.Measured], problem: grid.Problem) -> tuple[float, ...]:
    points = sorted({row.shares for row in rows if row.kind == "grid"})
    scores = [
        np.mean([problem.score(np.array(row.losses["eval"])) for row in rows if row.shares == p])
        for p in points
    ]
    return points[int(np.argmin(scores))]


def measure(
    pool: Pool, suite: SuitePaths, problem: grid.Problem, code: str, changed: Changed
) -> None:
    """Measures one grid, and its best point, uniform and proportional with fresh seeds.

    `code` is the fingerprint from before the pool was started, which is what its processes run.
    """
    _bench(suite)  # tokenised once, before the processes ask for it together
    path, domains = problem.path, len(suite.names)
    rows = _start(path, suite, code, changed)
    points = [tuple(point) for point in problem.points.round(6).tolist()]
    _run(pool, path, [(suite, "grid", p, s) for p in points for s in grid.GRID_SEEDS], rows)
    named = {
        grid.OPTIMUM: _best(rows, problem),
        grid.UNIFORM: (1 / domains,) * domains,
        grid.PROPORTIONAL: suite.proportional,
    }
    _run(pool, path, [(suite, k, p, s) for k, p in named.items() for s in grid.FRESH_SEEDS], rows)
    about, rows = grid.read_rows(path)
    _write(path, about, suite.names, sorted(rows, key=lambda row: row.key))


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def measure_all(
    problems: Sequence[tuple[grid.Problem, Callable[[Path], SuitePaths]]],
    jobs: int,
    folder: Path | None,
    changed: Changed,
) -> None:
    """Measure the grid of each problem, which is written to a folder by the function beside it."""
    spawn = multiprocessing.get_context("spawn")
    code = grid.code_fingerprint()
    with _scratch(folder) as scratch, spawn.Pool(jobs, _one_thread) as pool:
        for problem, write in problems:
            measure(pool, write(scratch / problem.path.stem), problem, code, changed)
    for problem, _ in problems:
        found = grid.read(problem)
        typer.echo(f"{problem.path.name}: best {found.optimum()}")
        for split in grid.SPLITS:
            typer.echo(f"  {split}: {found.margin(split)}")


def main(
    domains: Annotated[list[int] | None, typer.Option(help="3, 4, 5; all by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the grid files.", show_default=False)] = HERE,
    folder: Annotated[Path | None, typer.Option(help="Suites and caches are kept here.")] = None,
    changed: Annotated[
        Changed, typer.Option(help="If the file was measured with other code or another suite.")
    ] = Changed.STOP,
) -> None:
    """Measure the grids and show by how much the optimum beats the baselines."""
    counts = domains or list(grid.PARTS)
    problems = [grid.suite_problem(count, out / f"grid_k{count}.csv") for count in counts]
    writers = [partial(write_suite, domains=count) for count in counts]
    measure_all(list(zip(problems, writers, strict=True)), jobs, folder, changed)


if __name__ == "__main__":
    typer.run(main)
