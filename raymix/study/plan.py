"""What a study is to do: which methods, how many trials, which confirmations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from raymix.core.codec import encode, to_spec
from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import Json, Strategy
from raymix.core.mixture import Mixture, Space
from raymix.core.trial import Proposal, Role, Searcher
from raymix.study.objective import Objective

BASE = "base"
CONFIRM = "confirm"
RESERVED = frozenset({BASE, CONFIRM, "uniform", "proportional"})

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Method:
    """A searcher in a study: its name there, and how many trials it may ask for in all.

    MEASURE trials do not count, as nothing is trained in them.
    """

    name: str
    searcher: Searcher
    num_trials: int

    def __post_init__(self) -> None:
        """Refuse a name that the study itself uses, and a number that is no number."""
        if self.name in RESERVED:
            raise ConfigError(f"a search method cannot be named '{self.name}': the study uses it")
        if self.num_trials < 0:
            raise ConfigError(f"num_trials of '{self.name}' must be >= 0, got {self.num_trials}")


@dataclass(frozen=True)
class Confirm:
    """How winners are confirmed: the `top_k` best and all baselines, each with `seeds` seeds."""

    top_k: int = 3
    seeds: int = 3

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        if self.top_k < 0 or self.seeds < 0:
            raise ConfigError(f"confirm must not be negative, got {self}")


@dataclass(frozen=True)
class Plan:
    """Everything a study decides with.

    `baselines`: the user's own, by name. `standard`: uniform and proportional are trained beside
    them, as every search should be held against; off where nothing is searched.
    """

    space: Space
    strategy: Strategy
    objective: Objective
    methods: tuple[Method, ...]
    baselines: Mapping[str, Mixture] = field(default_factory=dict)
    confirm: Confirm = Confirm()
    seed: int = 0
    standard: bool = True

    def __post_init__(self) -> None:
        """Refuse names used twice, a negative seed, mixtures and objectives that do not fit."""
        names = [*(m.name for m in self.methods), *self.baselines]
        for name in names:
            if name in RESERVED:
                raise ConfigError(f"a baseline cannot be named '{name}': the study uses it")
            if names.count(name) > 1:
                raise ConfigError(
                    f"method or baseline name '{name}' is used twice; give one another name"
                )
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")
        self.objective.check(self.space.names, self.space.prior)
        for name, mixture in self.baselines.items():
            check_allowed(self.space, mixture, f"baseline '{name}'")

    def identity(self) -> dict[str, Json]:
        """What must not change between a study and its resumption (the methods may)."""
        return {
            "seed": self.seed,
            "objective": encode(self.objective),
            "space": encode(self.space),
            "strategy": encode(to_spec(self.strategy)),
        }


def check_allowed(space: Space, mixture: Mixture, what: str) -> Mixture:
    """The mixture in the space's order of domains; raises MixtureError if bounds forbid it."""
    mixture = mixture.ordered(space.names)
    rows = zip(space.names, mixture.weights, space.lower, space.ceiling(), strict=True)
    for name, share, low, high in rows:
        if not low - _TOLERANCE <= share <= high + _TOLERANCE:
            raise MixtureError(
                f"{what} gives '{name}' {share:.4g} of the budget, but its bounds and epoch cap "
                f"allow {low:.4g} to {high:.4g}"
            )
    return mixture


def generator(seed: int, method: str, number: int) -> np.random.Generator:
    """The generator of one ask; it depends on nothing but its arguments."""
    name = int.from_bytes(hashlib.sha256(method.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, name, number])


def baselines(plan: Plan) -> dict[str, Proposal]:
    """Uniform and proportional (unless switched off) and the user's, by name.

    Where bounds or epoch caps forbid uniform or proportional, the nearest allowed mixture stands
    in. The same mixture under two names is trained once; its note lists the names.
    """
    space = plan.space
    standard = {"uniform": space.uniform(), "proportional": space.proportional()}
    plain = standard if plan.standard else {}
    wanted = {name: space.project(mixture.array()) for name, mixture in plain.items()}
    for name, mixture in plan.baselines.items():
        wanted[name] = check_allowed(space, mixture, f"baseline '{name}'")
    found: dict[str, Proposal] = {}
    for name, mixture in wanted.items():
        same = next((k for k, p in found.items() if _close(p.mixture, mixture)), None)
        moved = name in plain and not _close(plain[name], mixture)
        if same is None:
            note = {"names": [name], "projected": moved}
            found[name] = Proposal(mixture, role=Role.BASELINE, note=note)
        else:
            names = [*found[same].note["names"], name]
            found[same] = replace(found[same], note={**found[same].note, "names": names})
    return found


def trainings(plan: Plan) -> dict[str, int]:
    """How many trainings the study asks for, by what they are for.

    The base model and MEASURE trials need none, however many there are.
    """
    fixed, confirm = len(baselines(plan)), plan.confirm
    searched = {method.name: method.num_trials for method in plan.methods}
    confirmed = min(confirm.top_k, sum(searched.values())) + fixed
    return {"baselines": fixed, **searched, "confirmations": confirmed * confirm.seeds}


def _close(a: Mixture, b: Mixture) -> bool:
    return bool(np.allclose(a.array(), b.array(), atol=_TOLERANCE, rtol=0))
