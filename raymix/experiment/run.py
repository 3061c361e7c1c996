"""Runs studies and single trainings; the parts with torch, Ray and MLflow are loaded here, late."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from raymix.core.errors import ConfigError, TrainingError
from raymix.core.job import Point, Status, TrainJob, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import History, Trial
from raymix.data.prepare import Prepared
from raymix.experiment.build import identity, plan, prepare, setup, space
from raymix.experiment.config import Experiment
from raymix.experiment.load import dump
from raymix.study.study import Listener, Study


@dataclass(frozen=True)
class Outcome:
    """What a study found. `folder` holds the history, the report and the best mixture."""

    folder: Path
    history: History
    best: Trial | None
    fingerprint: str


def open_study(
    experiment: Experiment,
    prepared: Prepared,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Study:
    """The experiment's study, its file locked for this process; close it when done."""
    folder = Path(experiment.study.folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Study(
        folder,
        plan(experiment, space(experiment, prepared.domains)),
        identity(experiment, prepared),
        dump(experiment),
        resume,
        listeners,
    )


def tune(
    experiment: Experiment, resume: bool = False, listeners: Sequence[Listener] = ()
) -> Outcome:
    """Search for the mixture, to the end of the plan.

    Every event is in `<folder>/history.jsonl` before anything else hears of it; `resume` goes on
    from that file.

    Raises:
        RaymixError: before any training where the experiment cannot be run.
        KeyboardInterrupt: on Ctrl-C; the history is whole and the study can be resumed.
    """
    prepared = prepare(experiment)
    folder = Path(experiment.study.folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dump(experiment), sort_keys=False, allow_unicode=True)
    study = open_study(experiment, prepared, resume, listeners)
    try:
        (folder / "experiment.yaml").write_text(text, encoding="utf-8")
        _run(study, experiment, prepared)
        return Outcome(folder, study.history, study.best(), study.fingerprint)
    finally:
        study.close()


def _run(study: Study, experiment: Experiment, prepared: Prepared) -> None:
    parts = setup(experiment, prepared)
    if experiment.cluster.runner == "local":
        from raymix.study.serial import run_serial
        from raymix.train.local import LocalRunner

        run_serial(study, LocalRunner(parts))
        return
    from raymix.cluster.tune import tune_study

    tune_study(study, parts, experiment.cluster, experiment.search.early_stopping)


def train(experiment: Experiment, mixture: Mixture, save: str | Path) -> TrainResult:
    """One training on `mixture` in this process; the model is saved to the folder `save`.

    The test split is evaluated at the end, where there is one.

    Raises:
        MixtureError: the mixture cannot be drawn.
        TrainingError: the training failed; says why.
    """
    from raymix.train.local import LocalRunner

    if experiment.cluster.num_workers != 1:
        raise ConfigError(
            "raymix train runs one worker; set cluster.num_workers=1 and scale "
            f"training.gradient_accumulation_steps, got {experiment.cluster.num_workers} workers"
        )
    prepared = prepare(experiment)
    within = space(experiment, prepared.domains)
    chosen = mixture.ordered(within.names)
    job = TrainJob(
        trial=0,
        stages=plan(experiment, within).strategy.stages(chosen, within.budget, {}),
        space=within,
        seed=experiment.study.seed,
        test=True,
        save=str(Path(save).resolve()),
    )
    parts = dataclasses.replace(
        setup(experiment, prepared), output_dir=str(Path(save).resolve() / "training")
    )
    (result,) = LocalRunner(parts).run([job], _go_on)
    if result.status is Status.FAILED:
        raise TrainingError(result.error)
    return result


def _go_on(trial: int, point: Point) -> bool:
    return True
