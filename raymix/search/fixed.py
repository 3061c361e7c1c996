"""Searchers that do not search: uniform, proportional, and mixtures that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.trial import History, Idle, Proposal
from raymix.search.seen import new, trained


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
    """Proposes the given mixtures in their order, then is done. Domains left out get 0.

    A mixture may be given as shares by domain, as YAML has it.
    """

    mixtures: tuple[Mixture | Mapping[str, float], ...]

    def __post_init__(self) -> None:
        """Refuse an empty list, and shares that are no mixture."""
        if not self.mixtures:
            raise SearchError("Fixed.mixtures is empty: give at least one mixture")
        for mixture in self.mixtures:
            _mixture(mixture)

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The first mixture that this method has not asked for.

        A mixture outside the bounds is proposed as it is: the study refuses it by name rather than
        train on something else than what the user wrote.
        """
        asked = trained(space, history.own)
        for mixture in self.mixtures:
            proposal = Proposal(_mixture(mixture).ordered(space.names))
            if new(space, proposal, asked):
                return proposal
        return Idle.DONE


def _mixture(given: Mixture | Mapping[str, float]) -> Mixture:
    return given if isinstance(given, Mixture) else Mixture.of(given)
