"""Searchers that do not search: uniform, proportional, and mixtures that the user gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.trial import History, Idle, Proposal
from raymix.search.seen import key, trained


@dataclass(frozen=True)
class Uniform:
    """Proposes equal shares once (the nearest allowed mixture), then is done."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The uniform mixture, unless this method has asked already."""
        return Idle.DONE if history.own else Proposal(space.project(space.uniform().array()))


@dataclass(frozen=True)
class Proportional:
    """Proposes shares by the domains' sizes once (the nearest allowed mixture), then is done."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The proportional mixture, unless this method has asked already."""
        return Idle.DONE if history.own else Proposal(space.project(space.proportional().array()))


@dataclass(frozen=True)
class Fixed:
    """Proposes the given mixtures in their order, then is done. Domains left out get 0."""

    mixtures: tuple[Mixture, ...]

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        if not self.mixtures:
            raise SearchError("Fixed.mixtures is empty: give at least one mixture")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The first mixture that this method has not asked for.

        A mixture outside the bounds is proposed as it is: the study refuses it by name rather than
        train on something else than what the user wrote.
        """
        asked = trained(space.names, history.own)
        for mixture in self.mixtures:
            ordered = mixture.ordered(space.names)
            if key(ordered) not in asked:
                return Proposal(ordered)
        return Idle.DONE
