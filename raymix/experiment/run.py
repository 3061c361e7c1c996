"""Runs studies and single trainings; the parts with torch, Ray and MLflow are loaded here, late."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from raymix.cluster.config import Cluster
from raymix.core.codec import to_spec
from raymix.core.errors import ClusterError, ConfigError, TrainingError
from raymix.core.job import Json, Point, Runner, Status, Strategy, TrainJob, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import History, Trial
from raymix.data.prepare import Prepared
from raymix.experiment.build import asks_influence, identity, plan, prepare, setup, space, strategy
from raymix.experiment.config import Experiment
from raymix.experiment.feasible import check_strategy
from raymix.experiment.load import dump, to_yaml
from raymix.experiment.needs import check_influence
from raymix.report.write import write_report
from raymix.storage.place import (
    Where,
    absolute,
    check_url,
    check_writable,
    is_url,
    place,
    published,
    write_whole,
)
from raymix.strategy.tuned import tuned
from raymix.study.plan import Plan
from raymix.study.record import Record, read
from raymix.study.store import copied
from raymix.study.study import Listener, Study
from raymix.track.null import About, Ending, NoTracker, Tracker
from raymix.train.config import Setup

_NONE: Mapping[str, float] = {}


@dataclass(frozen=True)
class Outcome:
    """What a study found. `folder` holds the history, the report and the best mixture."""

    folder: UPath
    history: History
    best: Trial | None


def tune(
    experiment: Experiment,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    prepared: Prepared | None = None,
) -> Outcome:
    """Search for the mixture, to the end of the plan.

    Every event is in `<folder>/history.jsonl` before anything else hears of it; `resume` goes on
    from that file. At the end the folder holds the best mixture and the figures, too.

    Args:
        experiment: what to run.
        resume: go on with the study in its folder, if there is one.
        listeners: hear of every trial; MLflow is one already, by `experiment.tracking`.
        prepared: the experiment's data, where they are at hand already.

    Raises:
        RaymixError: before any training where the experiment cannot be run.
        KeyboardInterrupt: on Ctrl-C; the history is whole and the study can be resumed.
    """
    prepared = prepared or prepare(experiment)
    if asks_influence(experiment):
        check_influence(experiment, prepared)
    return conduct(
        experiment,
        plan(experiment, space(experiment, prepared.domains)),
        prepared,
        identity(experiment, prepared),
        write_report,
        resume,
        listeners,
    )


def conduct(
    experiment: Experiment,
    asked: Plan,
    prepared: Prepared,
    depends: Mapping[str, Json],
    write: Callable[[Record, Path], Sequence[Path]],
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Run the study `asked` in the experiment's folder; as `tune`, whatever it is for.

    `depends`: what else its results depend on. `write` leaves in the folder what people read.
    """
    folder = place(experiment.study.folder)
    try:
        check_writable(folder)
    except OSError as error:
        raise ConfigError(f"study.output_dir: cannot write to '{folder}': {error}") from None
    tracker = _tracker(experiment)
    config = dump(experiment)
    study = Study(folder, asked, depends, config, resume, (tracker, *listeners))
    try:
        with published(folder) as here, _followed(tracker, study, experiment, prepared):
            described, text = here / "experiment.yaml", to_yaml(experiment)
            described.write_text(text, encoding="utf-8")
            if not isinstance(folder, Path):
                write_whole(folder / described.name, text.encode())  # the others follow at the end
            tracker.artifact(described)
            _run(study, experiment, prepared)
            for path in write(read(folder), here):
                tracker.artifact(path)
            tracker.artifact(copied(folder, here))
        return Outcome(folder, study.history, study.best())
    finally:
        study.close()


@contextmanager
def _followed(
    tracker: Tracker, study: Study, experiment: Experiment, prepared: Prepared
) -> Iterator[None]:
    """Let the tracker hear how the study starts and ends, whatever happens in between."""
    about = About(
        study.id,
        experiment.study.name,
        experiment.study.seed,
        prepared.fingerprint,
        dump(experiment),
        {name: member.group for name, member in study.plan.members.items()},
        study.units,
        to_spec(study.plan.strategy),
        lambda trial: len(study.job(trial).stages),
    )
    told = [trial for trial in study.history if not trial.pending]
    tracker.study_started(about, told)
    ending = Ending.FAILED
    try:
        yield
        ending = Ending.FINISHED
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
        raise
    finally:
        tracker.study_ended(ending)


def _tracker(experiment: Experiment) -> Tracker:
    settings = experiment.tracking
    if settings.report_to == "none":
        return NoTracker()
    from raymix.track.mlflow import MlflowTracker

    return MlflowTracker(settings.tracking_uri, settings.experiment_name)


def _run(study: Study, experiment: Experiment, prepared: Prepared) -> None:
    parts = setup(experiment, prepared)
    if experiment.cluster.runner == "local":
        from raymix.study.serial import run_serial

        run_serial(study, _local_runner(parts, experiment.cluster))
        return
    from raymix.cluster.tune import tune_study

    tune_study(study, parts, experiment.cluster, experiment.search.early_stopping)


def train(
    experiment: Experiment,
    mixture: Mixture | None,
    save: Where,
    order: Strategy | None = None,
    params: Mapping[str, float] = _NONE,
) -> TrainResult:
    """One training on `mixture` (None: the prior); the model goes to the folder `save`.

    The test split is evaluated at the end, where every domain has one. `order` None: the
    experiment's strategy; `params` are the strategy's.

    Raises:
        ConfigError, MixtureError: the mixture cannot be drawn, or a stage of it gets no step;
            `save` is the base model itself.
        TrainingError: the training failed; says why.
    """
    if is_url(save):
        _check_url(str(save))
    target = absolute(save)
    if target == absolute(experiment.model_name_or_path):
        raise ConfigError(f"will not save over the base model in {target}; choose another folder")
    prepared = prepare(experiment)
    within = space(experiment, prepared.domains)
    chosen = (mixture or within.prior).ordered(within.names)
    own = tuned(order or strategy(experiment), params)
    job = TrainJob(
        trial=0,
        stages=check_strategy(experiment, own, within, chosen),
        space=within,
        seed=experiment.study.seed,
        test=True,
        save=target,
    )
    # Checkpoints lie beside the model: in its folder they would be part of it.
    parts = dataclasses.replace(setup(experiment, prepared), output_dir=f"{target}-training")
    result = _train(job, parts, experiment.cluster)
    if result.status is Status.FAILED:
        raise TrainingError(result.error)
    return result


def _check_url(save: str) -> None:
    try:
        check_url(save)
    except ValueError as error:
        raise ConfigError(f"save: {error}") from None


def _train(job: TrainJob, parts: Setup, cluster: Cluster) -> TrainResult:
    """In this process where one worker is enough, else on a pool of workers."""
    if cluster.num_workers == 1:
        (result,) = _local_runner(parts, cluster).run([job], _go_on)
        return result
    from raymix.cluster.single import train_on_pool

    return train_on_pool(job, parts, cluster, _go_on)


def _local_runner(parts: Setup, cluster: Cluster) -> Runner:
    import torch

    from raymix.train.local import LocalRunner
    from raymix.train.shard import World

    # More threads than cores that are free slow small models down a hundredfold.
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    gpu = cluster.use_gpu if cluster.use_gpu is not None else torch.cuda.is_available()
    if gpu and not torch.cuda.is_available():
        raise ClusterError("cluster.use_gpu is set but this machine has no GPU that torch can use")
    return LocalRunner(parts, World(device=torch.device("cuda" if gpu else "cpu")))


def _go_on(trial: int, point: Point) -> bool:
    return True
