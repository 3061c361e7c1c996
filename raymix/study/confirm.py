"""Confirmation: the best mixtures and the baselines again, with fresh seeds shared as blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from raymix.core.codec import to_json
from raymix.core.job import Json, Status
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.study.plan import Confirm

_FIRST_SEED = 1000
"""Added to the study's seed: no search trial has seen these, or the winner would be flattered."""


def content(proposal: Proposal) -> str:
    """What is trained, without why: two proposals with equal content differ by their seed only."""
    return to_json(_plain(proposal, Role.SEARCH))


def _plain(proposal: Proposal, role: Role, note: Json = None) -> Proposal:
    return replace(proposal, role=role, measure=frozenset(), note=note, keep=False, repeat=0)


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


def confirmations(history: History, settings: Confirm, seed: int) -> Iterator[tuple[Proposal, int]]:
    """Proposals and seeds still to be asked; block by block, so that early blocks are whole."""
    asked = {
        (content(t.proposal), t.proposal.note["block"]) for t in history if t.role is Role.CONFIRM
    }
    chosen = candidates(history, settings)
    for block in range(settings.seeds):
        for trial in chosen:
            if (content(trial.proposal), block) not in asked:
                note = {"of": trial.number, "block": block}
                yield _plain(trial.proposal, Role.CONFIRM, note), seed + _FIRST_SEED + block


def confirmed(history: History) -> dict[int, tuple[Trial, ...]]:
    """Whole confirmations by the number of the trial that they repeat, in order of blocks.

    One that was stopped early is left out: its losses are not those of a whole training.
    """
    found: dict[int, list[Trial]] = {}
    for trial in history.finished:
        whole = trial.result is not None and trial.result.status is Status.DONE
        if trial.role is Role.CONFIRM and whole:
            found.setdefault(_of(trial), []).append(trial)
    return {k: tuple(sorted(v, key=lambda t: t.proposal.note["block"])) for k, v in found.items()}


def winner(history: History) -> Trial | None:
    """The best trial: by mean eval score over fresh seeds if confirmed, else by rank.

    Until the best-ranked mixture is confirmed the ranking decides; then only blocks that all
    confirmed mixtures have count, and a mixture of which a training failed does not compete. Those
    that break a guard on average come last. Test losses are not looked at.
    """
    ranked = history.ranking()
    repeats = confirmed(history)
    failed = {_of(t) for t in history if t.role is Role.CONFIRM and not (t.pending or t.finished)}
    if not ranked or not (ranked[0].number in repeats or ranked[0].number in failed):
        return next(iter(ranked), None)
    sound = {n: trials for n, trials in repeats.items() if n not in failed} or repeats
    blocks = min(len(trials) for trials in sound.values())
    whole = {n: trials[:blocks] for n, trials in repeats.items() if len(trials) >= blocks}

    def key(number: int) -> tuple[bool, float, int]:
        trials = whole[number]
        broken = float(np.mean([t.violation for t in trials])) > 0
        return broken, float(np.mean([t.score for t in trials])), number

    return {t.number: t for t in history}[min(whole, key=key)] if whole else ranked[0]


def _of(trial: Trial) -> int:
    """Number of the trial that a confirmation repeats."""
    return int(trial.proposal.note["of"])
