"""Between trainings: searchers propose mixtures from the history.

A name in `__all__` is a `type` in the experiment's `search.searchers`.
"""

from raymix.search.dirichlet import Dirichlet
from raymix.search.doubled import Doubled
from raymix.search.fixed import Fixed
from raymix.search.grid import Grid
from raymix.search.ideal import Ideal
from raymix.search.mos import MosSearch
from raymix.search.online import Online
from raymix.search.optuna import Optuna
from raymix.search.proxy import Proxy
from raymix.search.swept import Swept

__all__ = [
    "Dirichlet",
    "Doubled",
    "Fixed",
    "Grid",
    "Ideal",
    "MosSearch",
    "Online",
    "Optuna",
    "Proxy",
    "Swept",
]
