"""Running a study to its end, one training after the other, in this process."""

from __future__ import annotations

from raymix.core.errors import StudyError
from raymix.core.job import Point, Runner
from raymix.core.trial import Idle
from raymix.study.study import Study


def run_serial(study: Study, runner: Runner) -> None:
    """Ask, train, tell until the study is done.

    An exception of `runner` ends the loop; the trial stays open and is asked again on resume.
    """

    def report(trial: int, point: Point) -> bool:
        study.reported(trial, point)
        return True

    while (trial := study.ask()) is not Idle.DONE:
        if isinstance(trial, Idle):
            raise StudyError("the study waits for a trial that nothing is running")
        job = study.job(trial)
        study.started(trial.number)
        (result,) = runner.run([job], report)
        study.tell(trial.number, result)
