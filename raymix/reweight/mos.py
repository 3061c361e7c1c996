"""MoS, and MoSpec with a target: a policy over domains moves the sampler by rewards (no proxy).

Wu et al., arXiv:2406.08811. No code of the paper's own was found: constants are those of a later
work of one of its authors (HBO), whose MoS trainer shows the lineage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raymix.core.errors import ConfigError
from raymix.core.job import Json
from raymix.core.mixture import Space
from raymix.core.policy import (
    descended,
    policy_gradient,
    prior_logits,
    sampled_gradient,
    scorer_gradient,
)
from raymix.core.signals import Decision, Signal, Signals
from raymix.core.simplex import Vector, log_softmax, project
from raymix.reweight.rewards import MEASURED, Reward, combined, measure, remembered
from raymix.reweight.trained import check_every, check_target, places, spread, trained


@dataclass(frozen=True)
class MoS:
    """Samples from softmax(psi), a logit for each domain, trained by rewards every `every` steps.

    The policy begins at the prior, proportional to sizes^(1/`tau`) (inf: uniform). What it comes to
    is projected into the space's bounds and epoch caps, and sampled from; the policy itself is not
    bounded.

    Rewards, singly or together (see `reweight.rewards`): "transferability", a domain's mean cosine
    to all domains; "difficulty", its perplexity over the base model's; "trajectory", a moving
    average over the updates of what the others give (of difficulty where it stands alone), the
    newest with weight `fresh`. Several are averaged, each divided by its mean over domains.

    With `target` this is MoSpec: transferability is the cosine to the target. `held_out`: the
    target is measured and never trained on (its upper bound must be 0). Else it is one of the
    trained domains, and its difficulty counts twice.

    `objective` says what `steps` steps of Adam, at a learning rate of `lr`, do to psi:

    - "mos", as published: they lower -sum_i R_i log p_i over *all* domains, unweighted by p. That
      is no policy gradient; its fixed point is p = R / sum(R), however small the differences. At
      the published 200 steps of 1e-4 a logit moves by .02 at the most in an update, a share of 1/2
      by .005: a fine-tuning with a few dozen updates hardly leaves its prior. Raise `lr`, or set
      `relax`: p then moves that part of the way to the fixed point in each update, without Adam.
      Rewards below 0 count as 0.
    - "pg": they raise E_p[R] + `entropy` * H(p), whose gradient is taken exactly, or, with `draws`
      > 0, estimated from so many draws of the policy a step, with E_p[R] as baseline. Its fixed
      point is proportional to exp(R / entropy): the best domain takes all as `entropy` goes to 0.

    The state holds the schedule, `[[step, {domain: share}], ...]`; `schedule.learned` makes a
    `Schedule` of it.

    Departs from the paper: Adam begins anew with each update; a domain that was not measured keeps
    the reward it had (or the mean, before its first); the scorer's pretraining is its closed form.
    """

    objective: Literal["mos", "pg"] = "mos"
    rewards: tuple[Reward, ...] = ("transferability",)
    target: str | None = None
    held_out: bool = True
    tau: float = 1.0
    every: int = 100
    steps: int = 200
    lr: float = 1e-4
    relax: float | None = None
    fresh: float = 0.9
    entropy: float = 0.01
    draws: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.objective not in ("mos", "pg"):
            raise ConfigError(f"MoS.objective must be mos or pg, got {self.objective!r}")
        self._check_rewards()
        check_every(self.every, "MoS.every")
        if not self.tau > 0:
            raise ConfigError(f"MoS.tau must be above 0, got {self.tau}")
        if self.steps < 1 or not 0 < self.lr < math.inf:
            raise ConfigError(
                f"MoS.steps must be at least 1 and lr above 0, got {self.steps} and {self.lr}"
            )
        if self.relax is not None and not (0 < self.relax <= 1 and self.objective == "mos"):
            raise ConfigError(f"MoS.relax must be in (0, 1], of objective mos, got {self.relax}")
        if not 0 < self.fresh <= 1:
            raise ConfigError(f"MoS.fresh must be above 0 and at most 1, got {self.fresh}")
        if self.entropy < 0 or self.draws < 0:
            raise ConfigError(
                f"MoS.entropy and draws must not be negative, got {self.entropy} and {self.draws}"
            )

    def _check_rewards(self) -> None:
        known = (*MEASURED, "trajectory")
        wrong = [reward for reward in self.rewards if reward not in known]
        if not self.rewards or wrong or len(set(self.rewards)) < len(self.rewards):
            raise ConfigError(f"MoS.rewards must be some of {', '.join(known)}, got {self.rewards}")
        if self.target and self.held_out and "transferability" not in self.rewards:
            raise ConfigError(
                f"MoS.target '{self.target}' is held out: of MoS.rewards only transferability "
                f"looks at it, got {self.rewards}"
            )

    @property
    def sources(self) -> tuple[Reward, ...]:
        """The rewards that are measured; trajectory only averages them."""
        return tuple(r for r in self.rewards if r != "trajectory") or ("difficulty",)

    @property
    def needs(self) -> frozenset[Signal]:
        """What the rewards are made of."""
        return frozenset(MEASURED[reward] for reward in self.sources)

    @property
    def same_step(self) -> bool:
        """No: the sampler moves from the next step on."""
        return False

    @property
    def targets(self) -> tuple[str, ...]:
        """The domain that is measured but not trained on, if there is one."""
        return (self.target,) if self.target is not None and self.held_out else ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """Sample from the prior.

        Raises:
            ConfigError: there is no such target, or it is trained on though held out.
        """
        if self.target is not None:
            check_target(space, self.target, self.held_out, "MoS.target")
        domains = trained(space)
        where = places(space.names, domains)
        sizes = np.array([space.domains[i].size(space.budget.unit) for i in where], dtype=float)
        state = {
            "domains": list(domains),
            "lower": np.asarray(space.lower)[where].tolist(),
            "upper": space.ceiling()[where].tolist(),
            "logits": prior_logits(np.maximum(sizes, 1.0), self.tau).tolist(),
            # The published average begins at 1; other rewards have nothing to begin at.
            "rewards": [1.0 if "trajectory" in self.rewards else None] * len(domains),
            "seed": seed,
            "schedule": [],
        }
        return self._decided(state, space.names, 0)

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """Reward the policy by what was measured; sample from what it becomes."""
        domains, names = tuple(state["domains"]), signals.mixture.names
        measured = [
            measure(reward, signals.values, names, domains, self.target) for reward in self.sources
        ]
        before = np.array(state["rewards"], dtype=np.float64)
        fresh = self.fresh if "trajectory" in self.rewards else 1.0
        rewards = remembered(combined(measured), before, fresh)
        if np.isfinite(rewards).any():
            known = np.where(np.isfinite(rewards), rewards, np.nanmean(rewards))
            rng = np.random.default_rng([state["seed"], signals.step])
            logits = self._trained(np.array(state["logits"]), known, rng)
            kept = [float(r) if np.isfinite(r) else None for r in rewards]
            state = {**state, "logits": logits.tolist(), "rewards": kept}
        return self._decided(state, names, signals.step)

    def _decided(self, state: Json, names: tuple[str, ...], step: int) -> tuple[Decision, Json]:
        policy = np.exp(log_softmax(np.array(state["logits"])))
        mixture = spread(names, state["domains"], project(policy, state["lower"], state["upper"]))
        schedule = [*state["schedule"], [step, mixture.as_dict()]]
        return Decision(sampling=mixture), {**state, "schedule": schedule}

    def _trained(self, logits: Vector, rewards: Vector, rng: np.random.Generator) -> Vector:
        """The policy's logits [K] after one update by `rewards` [K]."""
        if self.objective == "pg":
            return log_softmax(
                descended(logits, lambda at: -self._ascent(at, rewards, rng), self.steps, self.lr)
            )
        rewards = np.maximum(rewards, 0.0)
        if not rewards.any():
            return logits
        if self.relax is not None:
            return relaxed(logits, rewards, self.relax)
        return log_softmax(
            descended(logits, lambda at: scorer_gradient(at, rewards), self.steps, self.lr)
        )

    def _ascent(self, logits: Vector, rewards: Vector, rng: np.random.Generator) -> Vector:
        if not self.draws:
            return policy_gradient(logits, rewards, self.entropy)
        policy = np.exp(log_softmax(logits))
        counts = rng.multinomial(self.draws, policy / policy.sum())
        return sampled_gradient(logits, rewards, counts, float(policy @ rewards), self.entropy)


_LEAST = 1e-12
"""A share of 0 would have no logit, and never come back."""


def relaxed(logits: Vector, rewards: Vector, part: float) -> Vector:
    """Logits [K] after p has gone `part` of the way to R / sum(R)."""
    policy = np.exp(log_softmax(logits))
    moved = (1.0 - part) * policy + part * rewards / rewards.sum()
    return log_softmax(np.log(np.maximum(moved, _LEAST)))
