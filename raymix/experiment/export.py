"""A study's winner, ready to be said in the words of other trainers."""

from __future__ import annotations

from raymix.core.errors import StudyError
from raymix.data.keys import plans
from raymix.experiment.build import data_spec, prepare
from raymix.experiment.config import Experiment
from raymix.report.best import best_of
from raymix.report.facts import facts
from raymix.report.recipe import Recipe
from raymix.storage.place import Where
from raymix.study.record import read


def recipe_of(folder: Where) -> Recipe:
    """The best mixture of the study in `folder`, with the data that it was found on.

    Raises:
        StudyError: no trial has a score yet.
        ConfigError, DataError: the study's data are not where they were.
    """
    record = read(folder)
    best = best_of(facts(record))
    if best is None:
        raise StudyError(f"'{folder}': no trial has a score yet")
    experiment = Experiment.model_validate(record.header["config"])
    return Recipe(
        best=best,
        domains=prepare(experiment).domains,
        plans=plans(data_spec(experiment)),
        model=experiment.model_name_or_path,
        training=experiment.training.model_dump(mode="json"),
        seed=experiment.study.seed,
    )
