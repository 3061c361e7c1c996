"""raymix: finds the mixture of supervised fine-tuning data, on Ray.

`import raymix` loads neither torch nor Ray. The names below are found in their rooms when they are
first used, so that a room can be imported without all the others.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "raymix.core.mixture",
    "Experiment": "raymix.experiment.config",
    "Mixture": "raymix.core.mixture",
    "Outcome": "raymix.experiment.run",
    "Unit": "raymix.core.mixture",
    "load": "raymix.experiment.load",
    "train": "raymix.experiment.run",
    "tune": "raymix.experiment.run",
}

__all__ = ["Budget", "Experiment", "Mixture", "Outcome", "Unit", "load", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymix' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
