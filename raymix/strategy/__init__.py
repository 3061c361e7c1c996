"""Order of training: strategies turn a mixture and a budget into stages.

A name in `__all__` is a `type` in the experiment's `strategy` and in that of a searcher.
"""

from raymix.strategy.dual_stage import DMT
from raymix.strategy.mixed import MixedSequential
from raymix.strategy.multitask import MultiTask
from raymix.strategy.promot import ProMoT
from raymix.strategy.prompted import Prompted
from raymix.strategy.sequential import Sequential

__all__ = ["DMT", "MixedSequential", "MultiTask", "ProMoT", "Prompted", "Sequential"]
