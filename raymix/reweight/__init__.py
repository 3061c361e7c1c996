"""Inside a training: reweighters move the mixture.

A name in `__all__` is a `type` in a searcher's `reweighter`.
"""

from raymix.reweight.constant import Constant
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.reweight.schedule import Schedule

__all__ = ["Constant", "DoGE", "DoReMi", "MoS", "Schedule"]
