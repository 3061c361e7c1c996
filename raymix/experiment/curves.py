"""The scaling curves of an experiment's domains: a study that trains on parts and searches nothing.

See `search.curves` for what is trained and `report.curves` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from upath import UPath

from raymix.cluster.config import EarlyStopping
from raymix.core.errors import ConfigError, SearchError
from raymix.core.mixture import Unit
from raymix.core.trial import Role
from raymix.data.prepare import Prepared
from raymix.experiment.build import identity, plan, prepare, space
from raymix.experiment.config import (
    TARGET,
    ConfirmSettings,
    Experiment,
    MixtureSettings,
    SearcherSettings,
    SearchSettings,
)
from raymix.experiment.run import conduct
from raymix.experiment.strategy import StrategySettings
from raymix.report.curve_figures import write_curves
from raymix.search.curves import FRACTIONS, Curves
from raymix.storage.place import place
from raymix.study.plan import Plan
from raymix.study.record import Record, read
from raymix.study.study import Listener

FOLDER, METHOD = "curves", "curves"


@dataclass(frozen=True)
class Asked:
    """What is to be trained; `pairs` None: the first two domains. See `search.curves.Curves`."""

    fractions: tuple[float, ...] = FRACTIONS
    epochs: int = 3
    seeds: int = 3
    pairs: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True)
class Drawing:
    """Scaling curves made ready: an experiment of its own in a folder of its own, and its plan."""

    experiment: Experiment
    plan: Plan
    prepared: Prepared
    curves: Curves

    @property
    def folder(self) -> UPath:
        """Where its history is."""
        return place(self.experiment.study.folder)


def drawing(experiment: Experiment, asked: Asked) -> Drawing:
    """The study that answers `asked`, in the folder `curves` of the experiment's own.

    On the target and every model in `proxies`. Of the experiment's mixture and search only the
    objective's weights count: parts are counted in rows, whatever bounds and caps say, and a
    training is evaluated at its end, on eval. As nothing is chosen by those losses they flatter
    nobody; test stays unseen.

    Raises:
        ConfigError: what is asked means nothing; before any training.
    """
    prepared = prepare(experiment)
    rows = sum(domain.rows for domain in prepared.domains)
    names = experiment.names
    pairs = (names[:2],) if asked.pairs is None and len(names) > 1 else asked.pairs or ()
    study, training = experiment.study, experiment.training
    own = experiment.model_copy(
        update={
            "study": study.model_copy(
                update={"name": f"{study.name}-{FOLDER}", "output_dir": f"{study.folder}/{FOLDER}"}
            ),
            "mixture": MixtureSettings(unit=Unit.EXAMPLES, budget=max(1, asked.epochs * rows)),
            "training": training.model_copy(update={"eval_steps": None}),
            # A domain alone has one stage: all is trained at once, or orders would be compared.
            "strategy": StrategySettings(),
            "format_leak": None,
        }
    )
    try:
        curves = Curves(
            asked.fractions,
            asked.epochs,
            tuple((pair[0], pair[1]) for pair in pairs),
            asked.seeds,
            (TARGET, *experiment.proxies),
        )
        wanted = curves.proposals(space(own, prepared.domains))
    except SearchError as error:
        raise ConfigError(str(error)) from None
    method = SearcherSettings(
        type="raymix.search.curves:Curves",
        name=METHOD,
        num_trials=sum(proposal.role is not Role.MEASURE for proposal in wanted),
        settings=asdict(curves),
    )
    search = SearchSettings(
        searchers=(method,),
        objective=experiment.search.objective,
        early_stopping=EarlyStopping(),
        confirm=ConfirmSettings(top_k=0, seeds=0),
    )
    own = own.model_copy(update={"search": search})
    made = replace(plan(own, space(own, prepared.domains)), standard=False)
    return Drawing(own, made, prepared, curves)


def draw(ready: Drawing, resume: bool = False, listeners: Sequence[Listener] = ()) -> Record:
    """Run the study to its end, on the experiment's cluster; its history.

    The folder gets `curves.json` and the figures. `resume` also adds seeds.

    Raises:
        RaymixError, KeyboardInterrupt: as `run.tune`.
    """
    fixed = {name: value for name, value in asdict(ready.curves).items() if name != "repeats"}
    depends = {**identity(ready.experiment, ready.prepared), METHOD: fixed}
    conduct(ready.experiment, ready.plan, ready.prepared, depends, write_curves, resume, listeners)
    return read(ready.folder)
