"""What was trained before: mixtures that would only repeat a known number, and baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raymix.core.mixture import Mixture
from raymix.core.trial import RANKED, Proposal, Role, Trial

_DIGITS = 6
PROPORTIONAL = "proportional"

Key = tuple[float, ...]


def key(mixture: Mixture) -> Key:
    """Equal for mixtures that differ by float dust only; names must be in one order."""
    return tuple(round(weight, _DIGITS) for weight in mixture.weights)


def trained(names: Sequence[str], trials: Iterable[Trial]) -> frozenset[Key]:
    """Keys of the mixtures that `trials`, pending ones included, train on.

    Trials with a budget, pool, reweighter, strategy parameter or start of their own train on
    something else, and so do unranked ones.
    """
    return frozenset(
        key(trial.mixture.ordered(names))
        for trial in trials
        if trial.role in RANKED and _plain(trial.proposal)
    )


def proportional(history: Iterable[Trial]) -> Trial | None:
    """The baseline that trains on shares by size; its mixture may go by another's name, too."""
    for trial in history:
        note = trial.proposal.note
        names = note.get("names", ()) if isinstance(note, Mapping) else ()
        if trial.role is Role.BASELINE and PROPORTIONAL in (trial.method, *names):
            return trial
    return None


def _plain(proposal: Proposal) -> bool:
    return proposal == Proposal(
        proposal.mixture,
        role=proposal.role,
        measure=proposal.measure,
        note=proposal.note,
        keep=proposal.keep,
        repeat=proposal.repeat,
    )
