"""What was trained before: trainings that would only repeat a known number, and baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raymix.core.mixture import Mixture, Space
from raymix.core.trial import RANKED, Proposal, Role, Trial

_DIGITS = 6
PROPORTIONAL = "proportional"

Key = tuple[float, ...]


def key(mixture: Mixture, params: Mapping[str, float] | None = None) -> Key:
    """Equal for trainings that differ by float dust only; names must be in one order."""
    # Made of each trial at each ask: rounding one by one would be most of what an ask takes.
    shares: Key = tuple(mixture.array().round(_DIGITS).tolist())
    # A parameter may be as small as 1e-6 (a learning rate): digits, not places.
    return shares + tuple(float(f"{number:.{_DIGITS}g}") for number in (params or {}).values())


def new(space: Space, proposal: Proposal, known: frozenset[Key]) -> bool:
    """Whether the proposal, with the defaults of what it leaves out, is none of `known`."""
    return key(proposal.mixture, space.settings(proposal.params)) not in known


def trained(space: Space, trials: Iterable[Trial]) -> frozenset[Key]:
    """Keys of what `trials`, pending ones included, train on: mixture and the space's parameters.

    Trials with a budget, pool, reweighter or start of their own, or with a parameter that is none
    of the space's, train on something else, and so do unranked ones.
    """
    names = space.names
    params = frozenset(each.name for each in space.params)
    return frozenset(
        key(trial.mixture.ordered(names), space.settings(trial.proposal.params))
        for trial in comparable(trials)
        if _plain(params, trial.proposal)
    )


def comparable(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The ranked trials whose numbers mean the same to a method: its own, and the baselines.

    A method may have a strategy of its own; then baselines are trained by another one. It shows in
    what the method has asked for, and before it has, in that baselines have a strategy at all.
    """
    ranked = [trial for trial in trials if trial.role in RANKED]
    own: Sequence[Trial] = [trial for trial in ranked if trial.role is not Role.BASELINE]
    strategy = own[0].proposal.strategy if own else None
    return tuple(
        trial
        for trial in ranked
        if trial.role is not Role.BASELINE or trial.proposal.strategy == strategy
    )


def proportional(history: Iterable[Trial]) -> Trial | None:
    """The baseline that trains on shares by size; its mixture may go by another's name, too."""
    for trial in history:
        note = trial.proposal.note
        names = note.get("names", ()) if isinstance(note, Mapping) else ()
        if trial.role is Role.BASELINE and PROPORTIONAL in (trial.method, *names):
            return trial
    return None


def _plain(names: frozenset[str], proposal: Proposal) -> bool:
    return proposal == Proposal(
        proposal.mixture,
        role=proposal.role,
        measure=proposal.measure,
        strategy=proposal.strategy,
        params={name: x for name, x in proposal.params.items() if name in names},
        note=proposal.note,
        keep=proposal.keep,
        repeat=proposal.repeat,
    )
