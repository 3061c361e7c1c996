"""Between trainings: searchers propose mixtures from the history.

A name in `__all__` is a `type` in the experiment's `search.searchers`.
"""

from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed
from raymix.search.grid import Grid
from raymix.search.ideal import Ideal
from raymix.search.optuna import Optuna

__all__ = ["Dirichlet", "Fixed", "Grid", "Ideal", "Optuna"]
