"""The errors raymix raises on purpose; each message names the value that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaymixError(Exception):
    """Base of every error that raymix raises on purpose."""


class ConfigError(RaymixError):
    """The experiment's description is wrong; nothing was started."""


class DataError(RaymixError):
    """A dataset, row, tokenizer or chat template is wrong; names file and line where known."""


class MixtureError(RaymixError):
    """A mixture, budget or cap is wrong, or together they cannot be met."""


class TrainingError(RaymixError):
    """A training cannot go on (NaN loss, unsupported model); its trial fails, the study goes on."""


class CheckpointError(TrainingError):
    """A checkpoint could not be written or is not whole."""


class InfluenceError(TrainingError):
    """An influence cannot be measured; names the layer or the domain."""


class StudyError(RaymixError):
    """The study's history and what is asked of it do not fit together."""


class ClusterError(RaymixError):
    """The cluster cannot give what the experiment asks for."""


class SearchError(RaymixError):
    """A searcher's settings are wrong."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to append to an error: ` (did you mean 'x'?)` for the known name most like `name`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
