"""Confirmation: mixtures and methods again, with fresh seeds that all of them share as blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

import numpy as np

from raymix.core.codec import to_json
from raymix.core.job import Json, Status
from raymix.core.mixture import Space
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.storage.place import Where, absolute
from raymix.study.groups import Members, chosen, runs_of
from raymix.study.plan import METHODS, Confirm, Plan

_FIRST_SEED = 1000
"""Added to the study's seed: no search trial has seen these, or the winner would be flattered."""

_BEST = Confirm()


def content(proposal: Proposal) -> str:
    """What is trained, without why: two proposals with equal content differ by their seed only."""
    return to_json(_plain(proposal, Role.SEARCH))


def _plain(proposal: Proposal, role: Role, note: Json = None) -> Proposal:
    params = dict(sorted(proposal.params.items()))
    kept = replace(proposal, role=role, measure=frozenset(), params=params)
    return replace(kept, note=note, keep=False, repeat=0)


def candidates(history: History, settings: Confirm) -> tuple[Trial, ...]:
    """The trials to confirm: every finished baseline, then the `top_k` best others."""
    bases = [t for t in history.finished if t.role is Role.BASELINE]
    chosen: list[Trial] = []
    seen = {content(t.proposal) for t in bases}
    for trial in history.ranking():
        if len(chosen) < settings.top_k and content(trial.proposal) not in seen:
            seen.add(content(trial.proposal))
            chosen.append(trial)
    return (*bases, *chosen)


def choices(history: History, members: Members) -> dict[str, tuple[Trial | None, ...]]:
    """What each group's methods chose, in the order of their repeats; None: one chose nothing.

    Finished baselines come first: each is a group of its own and chose itself.
    """
    bases = [t for t in history.finished if t.role is Role.BASELINE]
    found: dict[str, tuple[Trial | None, ...]] = {t.method: (t,) for t in bases}
    for group, names in runs_of(members).items():
        found[group] = tuple(chosen(history, name) for name in names)
    return found


def confirmations(history: History, plan: Plan) -> Iterator[tuple[Proposal, int]]:
    """Proposals and seeds still to be asked; block by block, so that early blocks are whole."""
    wanted = _methods if plan.confirm.of == METHODS else _best
    for block in range(plan.confirm.seeds):
        for trial, note in wanted(history, plan, block):
            proposal = again(trial, plan.space, plan.confirm, note)
            yield proposal, plan.seed + _FIRST_SEED + block


def _best(history: History, plan: Plan, block: int) -> Iterator[tuple[Trial, Json]]:
    """What block `block` lacks of the best trials."""
    asked = {(content(t.proposal), t.proposal.note["block"]) for t in _of_best(history)}
    for trial in candidates(history, plan.confirm):
        note = {"of": trial.number, "block": block}
        if (content(again(trial, plan.space, plan.confirm)), block) not in asked:
            yield trial, note


def _methods(history: History, plan: Plan, block: int) -> Iterator[tuple[Trial, Json]]:
    """What block `block` lacks of the groups' choices: each group's run `block` mod n."""
    notes = [t.proposal.note for t in history if t.role is Role.CONFIRM]
    for group, runs in choices(history, plan.members).items():
        trial = runs[block % len(runs)]
        if trial is not None:
            note = {"of": trial.number, "block": block, "group": group}
            if note not in notes:
                yield trial, note


def again(trial: Trial, space: Space, settings: Confirm, note: Json = None) -> Proposal:
    """The training of `trial` once more: as it was, but for what only a search needs.

    A method that works inside the training works in it again. At equal size, a budget of its own
    gives way to the study's, the mixture to the nearest allowed, and pools to all rows.
    """
    proposal = _plain(trial.proposal, Role.CONFIRM, note)
    if trial.role is Role.FINAL:
        proposal = replace(proposal, reweighter=None)
    if settings.equal:
        proposal = replace(proposal, pools=None)
        if proposal.budget not in (None, space.budget):
            mixture = space.project(proposal.mixture.ordered(space.names).array())
            proposal = replace(proposal, mixture=mixture, budget=None)
    return proposal


def confirmed(history: History, settings: Confirm = _BEST) -> dict[int, tuple[Trial, ...]]:
    """Whole confirmations by the number of the trial that they repeat, in order of blocks.

    One that was stopped early is left out: its losses are not those of a whole training.
    """
    counted: Iterable[Trial] = filter(_whole, _of_best(history))
    if settings.of == METHODS:
        counted = (trial for blocks in by_group(history).values() for trial in blocks.values())
    found = _by_trial(counted)
    return {k: tuple(sorted(v, key=lambda t: t.proposal.note["block"])) for k, v in found.items()}


def by_group(history: History) -> dict[str, dict[int, Trial]]:
    """Whole confirmations of what methods chose, by group and block, in the order of the asks."""
    found: dict[str, dict[int, Trial]] = {}
    for group, blocks in _latest(history).items():
        whole = {block: trial for block, trial in blocks.items() if _whole(trial)}
        if whole:
            found[group] = dict(sorted(whole.items()))
    return found


def failures(history: History) -> dict[str | int, int]:
    """How many confirmations failed, or ended early, of each group or confirmed trial (number).

    Of a group the latest in each block counts. Those without any are left out.
    """
    lost: list[str | int] = [
        group
        for group, blocks in _latest(history).items()
        for trial in blocks.values()
        if not (trial.pending or _whole(trial))
    ]
    lost += [of(t) for t in _of_best(history) if not (t.pending or t.finished)]
    return dict(Counter(lost))


def _latest(history: History) -> dict[str, dict[int, Trial]]:
    """The latest confirmation of each group in each block: a method may have chosen again."""
    found: dict[str, dict[int, Trial]] = {}
    for trial in history:
        if trial.role is Role.CONFIRM and "group" in trial.proposal.note:
            note = trial.proposal.note
            found.setdefault(note["group"], {})[note["block"]] = trial
    return found


def winner(
    history: History, settings: Confirm = _BEST, members: Members | None = None
) -> Trial | None:
    """The best trial: by mean eval score over fresh seeds if confirmed, else by rank.

    Until the best-ranked mixture is confirmed the ranking decides; then only blocks that all
    confirmed mixtures have count, and a mixture of which a training failed does not compete. Those
    that break a guard on average come last. Test losses are not looked at.

    Where methods are confirmed: of the best group (see `champion`) the run whose choice did best.
    """
    first = next(iter(history.ranking()), None)
    if settings.of == METHODS:
        best = champion(history, members or {})
        if best is None:
            return first
        return _numbered(history, favourite(by_group(history), best))
    repeats = confirmed(history)
    failed = failures(history)
    if first is None or not (first.number in repeats or first.number in failed):
        return first
    sound = {n: trials for n, trials in repeats.items() if n not in failed} or repeats
    blocks = min((len(trials) for trials in sound.values()), default=0)
    whole = {n: trials[:blocks] for n, trials in repeats.items() if len(trials) >= blocks}
    if not whole or not blocks:
        return first
    return _numbered(history, min(whole, key=lambda number: _worth(whole[number], number)))


def champion(history: History, members: Members) -> str | None:
    """The group with the best mean eval score over the blocks that all groups have.

    None while there is no such block. Groups that chose nothing, or of which a confirmation failed,
    do not compete; those that break a guard on average come last.
    """
    told, rows = by_group(history), choices(history, members)
    failed = failures(history)
    competing = [group for group, runs in rows.items() if any(run is not None for run in runs)]
    competing = [group for group in competing if group not in failed] or competing
    shared = [set(told.get(group, {})) for group in competing]
    blocks = set.intersection(*shared) if shared else set()
    if not blocks:
        return None
    order = {group: place for place, group in enumerate(competing)}
    return min(competing, key=lambda group: _worth([told[group][b] for b in blocks], order[group]))


def favourite(told: Mapping[str, Mapping[int, Trial]], group: str) -> int:
    """Number of the trial, of those that a group's runs chose, whose confirmations did best.

    `told`: whole confirmations by group and block. The runs are confirmed in different blocks, so
    each score (eval) counts from the mean of its block over the other groups that have all blocks
    of this one; without such groups the plain scores decide.
    """
    blocks = told[group]
    others = [own for name, own in told.items() if name != group and own.keys() >= blocks.keys()]
    level = {b: float(np.mean([own[b].score for own in others])) if others else 0.0 for b in blocks}
    shifted = [replace(trial, score=trial.score - level[b]) for b, trial in blocks.items()]
    repeats = _by_trial(shifted)
    return min(repeats, key=lambda number: _worth(repeats[number], number))


def _worth(trials: Sequence[Trial], place: int) -> tuple[bool, float, int]:
    """What confirmations are compared by: broken guards, mean score, and a number for ties."""
    broken = float(np.mean([t.violation for t in trials])) > 0
    return broken, float(np.mean([t.score for t in trials])), place


def _by_trial(confirmations: Iterable[Trial]) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in confirmations:
        found.setdefault(of(trial), []).append(trial)
    return found


def saved_at(folder: Where, history: History, trial: Trial) -> str:
    """Where the model of a confirmation is kept (`Confirm.save`): `models/<label>-<block>`.

    The label is the group, or the trial that it repeats; what no file may be called is escaped.
    """
    note = trial.proposal.note
    source = _numbered(history, of(trial))
    name = source.method
    if source.role is not Role.BASELINE:
        name = f"{name}-{source.number:03d}"
    label = quote(f"{note.get('group', name)}-{note['block']}", " #=+,")
    return f"{absolute(folder)}/models/{label}"


def _of_best(history: History) -> Iterator[Trial]:
    """Confirmations of the best trials, not of what methods chose."""
    return (t for t in history if t.role is Role.CONFIRM and "group" not in t.proposal.note)


def _whole(trial: Trial) -> bool:
    done = trial.result is not None and trial.result.status is Status.DONE
    return trial.finished and done


def _numbered(history: History, number: int) -> Trial:
    return next(trial for trial in history if trial.number == number)


def of(trial: Trial) -> int:
    """Number of the trial that a confirmation repeats."""
    return int(trial.proposal.note["of"])
