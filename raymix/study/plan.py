"""What a study is to do: which methods, how many trials, which confirmations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from raymix.core.codec import encode, to_spec
from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import Json, Strategy
from raymix.core.mixture import Mixture, Parameter, Space
from raymix.core.trial import Proposal, Role, Searcher
from raymix.study.groups import Member
from raymix.study.objective import Objective

BASE = "base"
CONFIRM = "confirm"
METHODS = "methods"
"""`Confirm.of`: what each method chose."""
RESERVED = frozenset({BASE, CONFIRM, "uniform", "proportional"})

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Method:
    """A searcher in a study: its name there, and how many trials it may ask for in all.

    MEASURE trials do not count, as nothing is trained in them. `group`: of the methods that are one
    searcher, run as a whole with several seeds; "": only itself. `repeat`: which of them it is; it
    is added to the study's seed. `least`: units of a bill that the cheapest of its trainings takes,
    for counting beforehand. `strategy`: in which order its proposals are trained, None: the
    study's; `params`: what numbers of it the searcher may set.
    """

    name: str
    searcher: Searcher
    num_trials: int
    group: str = ""
    repeat: int = 0
    least: float = 1.0
    strategy: Strategy | None = None
    params: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that the study itself uses, and a number that is no number."""
        for name in (self.name, self.group):
            if name in RESERVED:
                raise ConfigError(f"a search method cannot be named '{name}': the study uses it")
        for what, number in (("num_trials", self.num_trials), ("repeat", self.repeat)):
            if number < 0:
                raise ConfigError(f"{what} of '{self.name}' must be >= 0, got {number}")

    @property
    def member(self) -> Member:
        """Its place among the methods of its group."""
        return Member(self.group or self.name, self.repeat)


def seeded(method: Method, seeds: int) -> tuple[Method, ...]:
    """`method` as a whole with `seeds` seeds: `tpe#0`, `tpe#1`, ...; with one it stays as it is."""
    if seeds < 1:
        raise ConfigError(f"seeds of '{method.name}' must be at least 1, got {seeds}")
    if seeds == 1:
        return (method,)
    name = method.name
    return tuple(
        replace(method, name=f"{name}#{number}", group=name, repeat=number)
        for number in range(seeds)
    )


@dataclass(frozen=True)
class Confirm:
    """What is trained again, each with `seeds` fresh seeds; all baselines always are.

    `of` "best": the `top_k` best mixtures. "methods": what each method chose, each of its runs in
    its turn, so that the noise of a row is that of the search, too. `equal_size`: what has a budget
    of its own is trained at the study's; None: where methods are compared. `save`: the models are
    kept in Hugging Face form.
    """

    top_k: int = 3
    seeds: int = 3
    of: Literal["best", "methods"] = "best"
    equal_size: bool | None = None
    save: bool = False

    def __post_init__(self) -> None:
        """Refuse negative numbers, and what cannot be confirmed."""
        if self.top_k < 0 or self.seeds < 0:
            raise ConfigError(f"confirm must not be negative, got {self}")
        if self.of not in ("best", METHODS):
            raise ConfigError(f"confirm.of must be best or methods, got '{self.of}'")

    @property
    def equal(self) -> bool:
        """Whether all is confirmed at the study's budget."""
        return self.of == METHODS if self.equal_size is None else self.equal_size


@dataclass(frozen=True)
class Plan:
    """Everything a study decides with.

    `baselines`: the user's own, by name. `standard`: uniform and proportional are trained beside
    them, as every search should be held against; off where nothing is searched. `bill`: units that
    each method may spend (see `study.bill`), None: what it likes.
    """

    space: Space
    strategy: Strategy
    objective: Objective
    methods: tuple[Method, ...]
    baselines: Mapping[str, Mixture] = field(default_factory=dict)
    confirm: Confirm = Confirm()
    seed: int = 0
    standard: bool = True
    bill: float | None = None

    def __post_init__(self) -> None:
        """Refuse names used twice, a negative seed, mixtures and objectives that do not fit."""
        self._check_names()
        if self.seed < 0:
            raise ConfigError(f"seed must be >= 0, got {self.seed}")
        if self.bill is not None and not 1 <= self.bill < math.inf:
            raise ConfigError(
                f"bill must be a number of trainings, at least 1 (or none fits), got {self.bill}"
            )
        limits = zip(self.space.names, self.space.upper, strict=True)
        closed = [name for name, most in limits if most <= 0]
        self.objective.check(self.space.names, self.space.prior, closed)
        for name, mixture in self.baselines.items():
            check_allowed(self.space, mixture, f"baseline '{name}'")

    def _check_names(self) -> None:
        """Refuse reserved names, and names that are used twice.

        A group stands in the verdict beside methods and baselines, so its name is one of them.
        """
        for name in self.baselines:
            if name in RESERVED:
                raise ConfigError(f"a baseline cannot be named '{name}': the study uses it")
        seats = [(m.member.group, m.member.repeat) for m in self.methods]
        groups = {m.group for m in self.methods if m.group and m.group != m.name}
        names = [*(m.name for m in self.methods), *groups, *self.baselines]
        twice = [group for group, repeat in seats if seats.count((group, repeat)) > 1]
        twice += [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(
                f"method or baseline name '{twice[0]}' is used twice; give one another name"
            )

    @property
    def members(self) -> dict[str, Member]:
        """Group and repeat of each method, by its name."""
        return {method.name: method.member for method in self.methods}

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
    """How many trainings the study asks for at most, by what they are for.

    The base model and MEASURE trials need none, however many there are. Under a bill, whole
    trainings are counted: those that are stopped early leave room for more.
    """
    fixed, confirm = len(baselines(plan)), plan.confirm
    searched = {method.name: _afforded(method, plan.bill) for method in plan.methods}
    rows = min(confirm.top_k, sum(searched.values()))
    if confirm.of == METHODS:
        rows = len({method.member.group for method in plan.methods if searched[method.name]})
    return {"baselines": fixed, **searched, "confirmations": (rows + fixed) * confirm.seeds}


def _afforded(method: Method, bill: float | None) -> int:
    if bill is None:
        return method.num_trials
    return min(method.num_trials, math.floor(bill / method.least + _TOLERANCE))


def _close(a: Mixture, b: Mixture) -> bool:
    return bool(np.allclose(a.array(), b.array(), atol=_TOLERANCE, rtol=0))
