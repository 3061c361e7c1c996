"""Whether a mixture was asked for before: its training would only repeat a known number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raymix.core.mixture import Mixture
from raymix.core.trial import RANKED, Proposal, Trial

_TOLERANCE = 1e-6


def seen(mixture: Mixture, trials: Iterable[Trial]) -> bool:
    """Whether one of `trials`, pending ones included, trains exactly on `mixture`.

    Trials with a budget, pool, reweighter, strategy parameter or start of their own train on
    something else, and so do unranked ones.
    """
    target = mixture.array()
    return any(
        trial.role in RANKED
        and _plain(trial.proposal)
        and trial.mixture.names == mixture.names
        and bool(np.allclose(trial.mixture.array(), target, atol=_TOLERANCE, rtol=0))
        for trial in trials
    )


def _plain(proposal: Proposal) -> bool:
    return proposal == Proposal(
        proposal.mixture, role=proposal.role, measure=proposal.measure, note=proposal.note
    )
