"""The influence of an experiment's domains: measured once, or held against retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from upath import UPath

from raymix.core.errors import ConfigError, SearchError, StudyError
from raymix.core.mixture import Mixture
from raymix.data.prepare import Prepared
from raymix.experiment.build import identity, plan, prepare, space
from raymix.experiment.config import (
    ConfirmSettings,
    Experiment,
    SearcherSettings,
    SearchSettings,
)
from raymix.experiment.needs import check_influence
from raymix.experiment.run import conduct
from raymix.report.scatter import write_influence
from raymix.report.validation import write_validation
from raymix.search.counts import Total
from raymix.search.perturb import Perturb
from raymix.storage.place import place
from raymix.study.plan import Plan
from raymix.study.record import Record, read
from raymix.study.study import Listener

FOLDER, METHOD = "influence", "perturb"


@dataclass(frozen=True)
class Probe:
    """What is to be measured.

    `mixture` None: the prior. `validate`: each domain's count is moved by `step` up and down and
    trained again, `repeats` times; else one training is measured. `total`, `branch`: see `Perturb`.
    """

    mixture: Mixture | None = None
    validate: bool = False
    step: float = 0.3
    repeats: int = 3
    total: Total = "fixed"
    branch: float = 0.0


@dataclass(frozen=True)
class Probing:
    """A probe made ready: an experiment of its own in a folder of its own, and its plan."""

    experiment: Experiment
    plan: Plan
    prepared: Prepared
    validate: bool

    @property
    def folder(self) -> UPath:
        """Where its history is."""
        return place(self.experiment.study.folder)


def probing(experiment: Experiment, probe: Probe) -> Probing:
    """The study that answers `probe`, in the folder `influence` of the experiment's own.

    Raises:
        ConfigError, MixtureError: the probe means nothing, or its mixture cannot be drawn.
        InfluenceError: the layers asked for are not there or do not fit into memory.
    """
    prepared = prepare(experiment)
    check_influence(experiment, prepared)
    fields: dict[str, object] = {"step": probe.step, "repeats": probe.repeats, "total": probe.total}
    if probe.branch:
        fields["branch"] = probe.branch
    if probe.mixture is not None:
        fields["start"] = probe.mixture.ordered(experiment.names).as_dict()
    try:
        number = len(Perturb(**fields).proposals(space(experiment, prepared.domains)))  # type: ignore[arg-type]
    except SearchError as error:
        raise ConfigError(str(error)) from None
    method = SearcherSettings(
        type="raymix.search.perturb:Perturb",
        name=METHOD,
        # The first training is that of the mixture itself, the only one that is measured.
        num_trials=number if probe.validate else 1,
        settings=fields,
    )
    study, goal = experiment.study, experiment.search
    own = experiment.model_copy(
        update={
            "study": study.model_copy(
                update={"name": f"{study.name}-{FOLDER}", "output_dir": f"{study.folder}/{FOLDER}"}
            ),
            "search": SearchSettings(
                searchers=(method,),
                objective=goal.objective,
                constraints=goal.constraints,
                confirm=ConfirmSettings(top_k=0, seeds=0),
            ),
        }
    )
    asked = replace(plan(own, space(own, prepared.domains)), standard=False)
    return Probing(own, asked, prepared, probe.validate)


def measure(ready: Probing, resume: bool = False, listeners: Sequence[Listener] = ()) -> Record:
    """Run a probe to its end, on the experiment's cluster; its history.

    `resume` also turns a measurement into a validation, which begins with it.

    Raises:
        StudyError: no influence could be measured; says why.
        RaymixError, KeyboardInterrupt: as `run.tune`.
    """
    (method,) = ready.experiment.search.searchers
    fixed = {name: value for name, value in method.settings.items() if name != "repeats"}
    depends = {**identity(ready.experiment, ready.prepared), METHOD: fixed}

    def write(record: Record, folder: Path) -> Sequence[Path]:
        _refuse_nothing(record)
        images = write_influence(record, folder)
        return (*images, *write_validation(record, folder)) if ready.validate else images

    conduct(ready.experiment, ready.plan, ready.prepared, depends, write, resume, listeners)
    return read(ready.folder)


def _refuse_nothing(record: Record) -> None:
    """Raise the error of the trainings where none was measured."""
    measured = [t for t in record.history if t.proposal.measure]
    if not any(t.finished for t in measured):
        failed = (t.result.error for t in measured if t.result and t.result.error)
        raise StudyError(f"no influence was measured: {next(failed, 'nothing was trained')}")
