"""How far a job has come: everything beside tensors that its result and its checkpoint hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raymix.core.codec import decode, encode
from raymix.core.job import Drawn, Json, Point, Spent
from raymix.core.mixture import Mixture
from raymix.core.simplex import Vector
from raymix.data.batches import Batches, Item
from raymix.train.measure import loss_tokens


@dataclass
class Course:
    """A job's steps so far.

    `shares` [K] sums what the domains counted in each step, `begun` has the steps before each stage
    that was entered, `drawn` has the ended stages. `inherited` is the part of `spent` that another
    job has paid.
    """

    shares: Vector
    step: int = 0
    stage: int = 0
    begun: list[int] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    drawn: list[tuple[Drawn, ...]] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    inherited: Spent = field(default_factory=Spent)
    checkpoint: str | None = None

    def count(self, items: Sequence[Item], shares: Vector, weights: Mixture | None = None) -> None:
        """Take in one optimizer step, drawn by `shares` [K].

        `weights`: of losses or gradients, where there were any; see `mean_mixture`.
        """
        self.step += 1
        if weights is None:
            self.shares += shares
        else:
            present = loss_tokens(items, len(self.shares)) > 0
            self.shares += np.where(present, weights.array(), 0.0)
        self.spent = replace(
            self.spent,
            steps=self.step,
            rows=self.spent.rows + sum(len(item.rows) for item in items),
            tokens=self.spent.tokens + sum(item.tokens for item in items),
            loss_tokens=self.spent.loss_tokens + sum(item.loss_tokens for item in items),
        )

    def branch(self) -> None:
        """Go on with what another job has done: its steps count, but not its cost."""
        self.inherited, self.checkpoint = self.spent, None

    def own(self, seconds: float) -> Spent:
        """What this job has spent itself in its `seconds`, all deliveries together."""
        shared = self.inherited
        return Spent(
            steps=self.spent.steps - shared.steps,
            rows=self.spent.rows - shared.rows,
            tokens=self.spent.tokens - shared.tokens,
            loss_tokens=self.spent.loss_tokens - shared.loss_tokens,
            seconds=seconds - shared.seconds,
        )

    def mean_mixture(self, names: tuple[str, ...]) -> Mixture | None:
        """What the domains counted, averaged over steps and scaled to sum to 1.

        That is the mixture that the model was trained by: the sampler's (of which a domain that its
        epoch cap has exhausted has nothing), or in steps with loss or gradient weights alpha,
        alpha_i where domain i has a judged token in the step and 0 where it has none, since absent
        domains add nothing to a step.

        DoReMi (arXiv:2305.10429, algorithm 1) and DoGE average alpha itself; their batches are so
        large that every domain is in each of them, and the two are the same. Where a domain is
        absent from half of the steps, they are not: what plays against the model is alpha_i times
        how often the domain is there, and it is this product that comes to the game's solution.
        (The mean of alpha_i itself would say .67 where the solution is .51.)

        None: there were no steps, or all weights were of domains that never came up.
        """
        return Mixture.normalised(names, self.shares) if self.shares.any() else None

    def state(self, seconds: float) -> Json:
        """Plain JSON; `seconds` is the time that the job has taken so far."""
        return {
            "step": self.step,
            "stage": self.stage,
            "begun": self.begun,
            "shares": self.shares.tolist(),
            "curve": [encode(point) for point in self.curve],
            "drawn": [[encode(drawn) for drawn in stage] for stage in self.drawn],
            "spent": encode(replace(self.spent, seconds=seconds)),
            "inherited": encode(self.inherited),
        }

    @classmethod
    def restored(cls, state: Json) -> Course:
        """The course that `state` was taken of."""
        return cls(
            shares=np.asarray(state["shares"], dtype=np.float64),
            step=state["step"],
            stage=state["stage"],
            begun=list(state["begun"]),
            curve=[decode(Point, point) for point in state["curve"]],
            drawn=[tuple(decode(Drawn, d) for d in stage) for stage in state["drawn"]],
            spent=decode(Spent, state["spent"]),
            inherited=decode(Spent, state["inherited"]),
        )


def expected_steps(batches: Batches) -> int:
    """How many steps the stage takes if its mixture stays as it is; at least 1."""
    sampler = batches.sampler
    items = 0.0
    for share, stream in zip(sampler.mixture.weights, sampler.streams, strict=True):
        if share > 0:
            items += share * sampler.budget.amount / float(np.mean(stream.load(0).sizes()))
    return max(1, math.ceil(round(items, 6) / batches.size))
