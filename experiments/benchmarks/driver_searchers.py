"""What a proposal costs by the length of a searcher's own history, for every searcher."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymix.core.codec import to_spec
from raymix.core.mixture import Parameter, Space
from raymix.core.trial import History, Idle, Proposal, Searcher, Trial
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.search import (
    Dirichlet,
    Doubled,
    Fixed,
    Grid,
    Ideal,
    MosSearch,
    Online,
    Optuna,
    Proxy,
    Swept,
)
from raymix.search.curves import Curves
from raymix.search.fixed import Proportional, Uniform
from raymix.search.perturb import Perturb
from raymix.testing.conformance import began, rng, told
from raymix.testing.toy import Toy

METHOD = "method"
_REPEATS = 5
_SECONDS = 8.0
"""CPU time after which a searcher is not asked again for a better figure."""

Play = Callable[[Space, Toy, int], tuple[Trial, ...]]


@dataclass(frozen=True)
class Case:
    """A searcher with its own history of any length: `play` returns so many told trials."""

    searcher: Searcher
    play: Play
    space: Space


def toy(domains: int) -> Toy:
    """Domains that help themselves alone."""
    eye = tuple(tuple(6.0 * (i == j) for j in range(domains)) for i in range(domains))
    return Toy(
        names=tuple(f"domain-{i:02d}" for i in range(domains)),
        c=(0.5,) * domains,
        k=(2.0,) * domains,
        t=eye,
        sizes=(1000,) * domains,
        noise=0.02,
        steps=4,
    )


def in_a_study() -> dict[str, Searcher]:
    """Every searcher with settings of a usual study; by a name that a method may have."""
    return {
        "Doubled": Doubled(),
        "Online": Online(to_spec(MoS())),
        "Proxy": Proxy(to_spec(DoReMi())),
        "Ideal": Ideal(),
        "Fixed": Fixed(({f"domain-{0:02d}": 1.0},)),
        "Swept": Swept(),
        "Uniform": Uniform(),
        "Proportional": Proportional(),
        "Perturb": Perturb(),
        "Curves": Curves(),
        "MosSearch": MosSearch(),
        "Grid": Grid(parts=2),
        "Optuna tpe": Optuna("tpe"),
        "Optuna gp": Optuna("gp"),
    }


def alone(problem: Toy, most: int) -> dict[str, Case]:
    """Every searcher that may be asked `most` times, with settings that let it be.

    Doubled, Online, Uniform and Proportional ask once: they have no history of their own.
    """
    space = problem.space()
    mixtures = tuple(proposal.mixture for proposal in _random(space, most + 1))
    parameter = Parameter("k", 0.5)
    tuned = dataclasses.replace(space, params=(parameter,))
    sweep = Swept(points=most + 1)
    swept = [
        Proposal(space.project(space.prior.array()), params={"k": at})
        for at in parameter.points(most + 1)
    ]
    paper = Ideal(mode="paper", rounds=most + 1)
    searching = Ideal(mode="paper", rounds=most, line_search=True)
    perturb = _repeated(lambda repeats: Perturb(repeats=repeats), space, most)
    curves = _repeated(lambda repeats: Curves(repeats=repeats), space, most)
    proxy = Proxy(to_spec(DoReMi()), rounds=most, tolerance=0.0)
    plain = _given(Proposal(mixture) for mixture in mixtures)
    return {
        "Dirichlet": Case(Dirichlet(), plain, space),
        "Grid (1/2)": Case(Grid(parts=2), plain, space),
        "Fixed": Case(Fixed(mixtures), plain, space),
        "Swept": Case(sweep, _given(swept), tuned),
        "Perturb": Case(perturb, _given(perturb.proposals(space)), space),
        "Curves": Case(curves, _given(curves.proposals(space)), space),
        "Proxy (DoReMi)": Case(proxy, _scripted(proxy), space),
        "Ideal": Case(paper, _scripted(paper), space),
        "Ideal, line search": Case(searching, _scripted(searching), space),
        "MosSearch": Case(MosSearch(), _asked(MosSearch()), space),
        "Optuna TPE": Case(Optuna("tpe"), plain, space),
        "Optuna GP (256)": Case(Optuna("gp"), plain, space),
    }


def proposing(domains: int, lengths: Sequence[int]) -> dict[str, dict[int, float]]:
    """CPU seconds of a proposal by searcher and length of its own history, the least of several."""
    problem = toy(domains)
    start, most = began(problem.space(), problem), max(lengths)
    found: dict[str, dict[int, float]] = {}
    for name, case in alone(problem, most).items():
        own = case.play(case.space, problem, most)
        histories = {
            n: History((*start.trials, *own[:n]), METHOD, start.base) for n in lengths if n <= most
        }
        found[name] = timed(case, histories)
    return found


def timed(case: Case, histories: Mapping[int, History]) -> dict[int, float]:
    """Seconds by length; the lengths take turns, so that a busy minute is not one length's."""
    best = dict.fromkeys(histories, math.inf)
    # The histories of all lengths are the benchmark's own; no driver has them to walk through.
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    for number in range(_REPEATS):
        for length, history in histories.items():
            before = time.process_time()
            answer = case.searcher.propose(case.space, history, rng(number))
            best[length] = min(best[length], time.process_time() - before)
            if isinstance(answer, Idle):
                raise ValueError(f"{case.searcher} has nothing to ask after {length} trials")
        if number and time.process_time() - begun > _SECONDS:
            break
    return best


def _repeated(make: Callable[[int], Any], space: Space, most: int) -> Any:
    """The searcher with as many repeats as give more than `most` proposals."""
    return make(most // len(make(1).proposals(space)) + 1)


def _random(space: Space, count: int) -> Iterator[Proposal]:
    nothing = History()
    for number in range(count):
        proposal = Dirichlet().propose(space, nothing, rng(number))
        assert isinstance(proposal, Proposal)
        yield proposal


def _given(proposals: Iterable[Proposal]) -> Play:
    """A history of given proposals, told once however often it is asked for."""
    kept = list(proposals)

    def play(space: Space, problem: Toy, length: int) -> tuple[Trial, ...]:
        return tuple(
            _told(place, proposal, problem) for place, proposal in enumerate(kept[:length])
        )

    return play


def _asked(searcher: Searcher) -> Play:
    """What a searcher asks for in turn."""

    def play(space: Space, problem: Toy, length: int) -> tuple[Trial, ...]:
        start, own = began(space, problem), list[Trial]()
        while len(own) < length:
            history = History((*start.trials, *own), METHOD, start.base)
            proposal = searcher.propose(space, history, rng(len(own)))
            assert isinstance(proposal, Proposal)
            own.append(_told(len(own), proposal, problem))
        return tuple(own)

    return play


def _scripted(searcher: Any) -> Play:
    """The same for one that replays a script at each ask.

    Here the script goes on: a thousand asks would be half a million of its steps.
    """

    def play(space: Space, problem: Toy, length: int) -> tuple[Trial, ...]:
        script, own = searcher._script(space), list[Trial]()
        asked = next(script)
        while len(own) < length:
            batch = [asked] if isinstance(asked, Proposal) else asked
            made = [
                _told(len(own) + place, proposal, problem) for place, proposal in enumerate(batch)
            ]
            own += made
            asked = script.send(made[0] if isinstance(asked, Proposal) else tuple(made))
        return tuple(own[:length])

    return play


def _told(place: int, proposal: Proposal, problem: Toy) -> Trial:
    # Numbers 1 and 2 are the baselines.
    return told(Trial(place + 3, METHOD, proposal, 0), problem)
