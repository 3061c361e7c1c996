"""MoS across trials: a policy over domains, rewarded by what the trainings on its draws come to.

The policy is that of MoS (arXiv:2406.08811); there it moves the sampler inside one training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import SearchError
from raymix.core.job import Json
from raymix.core.mixture import Space
from raymix.core.policy import prior_logits, sampled_gradient
from raymix.core.simplex import Vector, log_softmax
from raymix.core.trial import History, Idle, Proposal, Trial
from raymix.search.seen import PROPORTIONAL, new, proportional, trained

_TRIES = 50
_DOUBLINGS = 4
"""How often the draws are doubled where every mixture of so many is known."""


@dataclass(frozen=True)
class MosSearch:
    """Draws mixtures from a policy softmax(psi) and raises what was drawn when it did well.

    The policy begins proportional to sizes^(1/`tau`). A proposal is what a small batch of MoS's
    would be: `draws` domains, each from the policy; their frequencies are the mixture (the nearest
    allowed one, and none that was trained before). Its reward is by how much its score is below
    that of the proportional baseline, less the violation of guards. Each finished trial is one step
    of policy gradient with baseline and entropy bonus (REINFORCE):

        psi += lr * ((r - b) / s * (counts - draws * p) / sqrt(draws) + entropy * grad H(p))

    b is the moving average of the rewards before it, 0 (proportional) at first, the newest with
    weight `fresh`; s the root mean square of r - b so far, so that the step does not depend on how
    large losses are; p the policy that the trial was drawn from. The order is that of the asks.
    """

    tau: float = 1.0
    draws: int = 16
    lr: float = 0.2
    entropy: float = 0.0
    fresh: float = 0.3

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not self.tau > 0:
            raise SearchError(f"MosSearch.tau must be above 0, got {self.tau}")
        if self.draws < 1:
            raise SearchError(f"MosSearch.draws must be at least 1, got {self.draws}")
        if not 0 < self.lr < math.inf or not 0 <= self.entropy < math.inf:
            raise SearchError(
                f"MosSearch.lr must be above 0 and entropy at least 0, got {self.lr} and "
                f"{self.entropy}"
            )
        if not 0 < self.fresh <= 1:
            raise SearchError(f"MosSearch.fresh must be above 0 and at most 1, got {self.fresh}")

    @property
    def pays_for(self) -> tuple[str, ...]:
        """The baseline that rewards are held against; it is on the bill, with the first trial."""
        return (PROPORTIONAL,)

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """A mixture drawn from the policy, replayed on the method's finished trials."""
        told = [trial for trial in history.own if trial.finished]
        baseline = proportional(history)
        if told and baseline is not None and baseline.pending:
            return Idle.WAIT
        logits = self.policy(space, history)
        policy, known = np.exp(logits), trained(space, history)
        for draws in (self.draws * 2**i for i in range(_DOUBLINGS)):
            tries = rng.multinomial(draws, policy / policy.sum(), size=_TRIES).tolist()
            # A policy that is nearly sure draws the same again and again.
            for counts in dict.fromkeys(map(tuple, tries)):
                mixture = space.project(np.array(counts) / draws)
                if new(space, Proposal(mixture), known):
                    drawn = dict(zip(space.names, counts, strict=True))
                    asked = dict(zip(space.names, policy.tolist(), strict=True))
                    note: dict[str, Json] = {"kind": "policy", "counts": drawn, "policy": asked}
                    if baseline is not None and not history.own:
                        note["charged"] = [baseline.number]
                    return Proposal(mixture, note=note)
        waits = any(trial.pending for trial in history.own)
        return Idle.WAIT if waits else Idle.DONE

    def policy(self, space: Space, history: History) -> Vector:
        """Log shares [K] after all finished trials; -inf for domains that cannot be trained on."""
        free = space.free()
        sizes = np.array([d.size(space.budget.unit) for d in space.domains], dtype=np.float64)
        logits = prior_logits(np.maximum(sizes[free], 1.0), self.tau)
        told = [trial for trial in history.own if trial.finished]
        reference = proportional(history)
        usual = 0.0
        squares = 0.0
        for number, trial in enumerate(told, start=1):
            beaten = reference if reference is not None and reference.finished else told[0]
            reward = _worth(trial) - _worth(beaten)
            squares += (reward - usual) ** 2
            scale = math.sqrt(squares / number) or 1.0
            counts, asked = _drawn(trial, space, free)
            step = rewarded(asked, counts, (reward - usual) / scale, self.entropy)
            logits = log_softmax(logits + self.lr * step)
            usual += self.fresh * (reward - usual)
        full = np.full(len(free), -np.inf)
        full[free] = logits
        return full


def rewarded(logits: Vector, counts: NDArray[np.int64], advantage: float, entropy: float) -> Vector:
    """The direction [K] in which one trial of `counts` [K] draws moves the logits."""
    size = math.sqrt(float(counts.sum()))
    worth = np.full(len(logits), advantage * size)
    return sampled_gradient(logits, worth, counts, 0.0, entropy)


def _worth(trial: Trial) -> float:
    return -(trial.score + trial.violation)


def _drawn(trial: Trial, space: Space, free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Vector]:
    """What a trial drew of the `free` domains [K'], and the logits of the policy it drew from."""
    note = trial.proposal.note
    if not isinstance(note, Mapping) or note.get("kind") != "policy":
        raise SearchError(
            f"trial {trial.number} of '{trial.method}' was not asked by MosSearch: give the method "
            "another name to begin anew"
        )
    names = [name for name, may in zip(space.names, free, strict=True) if may]
    counts = np.array([note["counts"][name] for name in names], dtype=np.int64)
    policy = np.array([note["policy"][name] for name in names], dtype=np.float64)
    with np.errstate(divide="ignore"):
        return counts, np.log(policy)
