"""Measures the planted-transfer problem on a lattice: makes raymix/testing/grid_transfer.csv.

About 520 trainings of one second; a stopped run goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from measure_grid import Changed, measure_all

from raymix.testing.transfer import transfer_problem, write_transfer


def main(
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    out: Annotated[Path | None, typer.Option(help="The grid's file.", show_default=False)] = None,
    folder: Annotated[Path | None, typer.Option(help="Data and caches are kept here.")] = None,
    changed: Annotated[
        Changed, typer.Option(help="If the file was measured with other code or another problem.")
    ] = Changed.STOP,
) -> None:
    """Measure the grid and show by how much the optimum beats the baselines."""
    measure_all([(transfer_problem(out), write_transfer)], jobs, folder, changed)


if __name__ == "__main__":
    typer.run(main)
