"""What a finished study leaves in its folder for people: the best mixture and the figures."""

from __future__ import annotations

from pathlib import Path

from raymix.report.best import best_of, write_best
from raymix.report.compared import write_comparison
from raymix.report.facts import facts
from raymix.report.figures import write_figures
from raymix.report.leak import write_leak
from raymix.report.scatter import write_influence
from raymix.report.stage_figure import write_stages
from raymix.study.plan import METHODS
from raymix.study.record import Record


def write_report(record: Record, folder: str | Path) -> tuple[Path, ...]:
    """Write `best_mixture.yaml` and the figures to `folder`; nothing while no trial has a score."""
    known = facts(record)
    best = best_of(known)
    if best is None:
        return ()
    figures = Path(folder) / "figures"
    return (
        write_best(best, Path(folder)),
        *write_figures(record, figures),
        *write_influence(record, figures),
        *write_stages(known, figures),
        *write_leak(record, figures),
        *(write_comparison(known, figures) if known.confirm.of == METHODS else ()),
    )
