"""Laws that every searcher and every reweighter must keep; AssertionError where one is broken.

A new method gets one test:

    @pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
    def test_my_searcher(law):
        law(MySearcher())

and a reweighter the same with `REWEIGHTER_LAWS`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from raymix.core.codec import decode, encode, from_spec, to_spec
from raymix.core.job import Diagnostic, Point, Spec, Status, TrainResult
from raymix.core.mixture import Budget, Domain, Mixture, Parameter, Space
from raymix.core.signals import Decision, Reweighter, Signal, Signals
from raymix.core.simplex import Vector
from raymix.core.trial import History, Idle, Proposal, Role, Searcher, Trial
from raymix.study.job import space_of
from raymix.testing.toy import Toy

_TOY = Toy()
_TOLERANCE = 1e-6
_METHOD = "method"


def rng(number: int, seed: int = 7) -> np.random.Generator:
    """The generator of ask `number`."""
    return np.random.default_rng([seed, number])


def tight() -> Space:
    """Three domains under bounds and epoch caps, so that most of the simplex is forbidden."""
    domains = (
        Domain("math", 100, 900, 500),
        Domain("code", 300, 3000, 900),
        Domain("chat", 600, 1, 1),
    )
    prior = Mixture.of({"math": 0.2, "code": 0.3, "chat": 0.5})
    return Space(domains, Budget(1000), prior, (0.05, 0.1, 0.0), (1.0, 0.7, 0.9), (3.0, 2.0, 2.0))


def tunable(space: Space) -> Space:
    """`space` with two parameters of the strategy's: a list of values and a range by logarithm."""
    listed = Parameter("k", 0.25, values=(0.0, 1.0, 0.25))
    return dataclasses.replace(space, params=(listed, Parameter("rate", 0.1, 1e-3, 1.0, log=True)))


def watching(space: Space) -> Space:
    """`space` whose last domain is only evaluated: it may have nothing of any budget."""
    found = dataclasses.replace(space, upper=(*space.upper[:-1], 0.0))
    return dataclasses.replace(found, prior=found.proportional())


def told(trial: Trial, toy: Toy, status: Status = Status.DONE) -> Trial:
    """The trial with the toy problem's answer (a failed one has none)."""
    if status is Status.FAILED:
        return dataclasses.replace(trial, result=TrainResult(status, {}, error="loss is NaN"))
    proposal = trial.proposal
    amount = proposal.budget.amount if proposal.budget else None
    losses = toy.losses(trial.mixture.ordered(toy.names).weights, amount)
    # Any parameter is best at 1/4 of 1: what a strategy does is not the toy's matter.
    losses = losses + 0.1 * sum((x - 0.25) ** 2 for x in proposal.params.values())
    metrics = {f"eval/{n}/loss": float(v) for n, v in zip(toy.names, losses, strict=True)}
    curve = (Point(1, 0.5 if status is Status.STOPPED else 1.0, metrics),)
    result = TrainResult(status, metrics, curve, mean_mixture=trial.mixture, checkpoint="toy/0")
    if Diagnostic.INFLUENCE in proposal.measure:
        influence = encode(toy.influence(trial.mixture, amount))
        result = dataclasses.replace(result, diagnostics={Diagnostic.INFLUENCE.value: influence})
    violation = max(0.0, float(losses[-1]) - toy.c[-1] - toy.k[-1] + 0.2)
    return dataclasses.replace(
        trial, result=result, score=float(losses.mean()), violation=violation
    )


def began(space: Space, toy: Toy = _TOY) -> History:
    """A study in which the base and both baselines are told, and `method` has not asked yet."""
    mixtures = {"uniform": space.uniform(), "proportional": space.proportional()}
    base = Trial(0, "base", Proposal(space.prior, role=Role.MEASURE), 0)
    trials = [told(base, toy)]
    for name, mixture in mixtures.items():
        proposal = Proposal(space.project(mixture.array()), role=Role.BASELINE)
        trials.append(told(Trial(len(trials), name, proposal, 0), toy))
    return History(tuple(trials[1:]), _METHOD, trials[0].result)


def run(
    searcher: Searcher,
    space: Space,
    asks: int,
    lag: int = 0,
    toy: Toy = _TOY,
    statuses: tuple[Status, ...] = (Status.DONE,),
    seed: int = 7,
) -> History:
    """Ask `asks` times, telling each trial when `lag` newer ones were asked."""
    start = began(space, toy)
    trials = list(start.trials)
    while len(trials) < len(start) + asks:
        history = History(tuple(trials), _METHOD, start.base)
        answer = searcher.propose(space, history, rng(len(trials), seed))
        if answer is Idle.DONE:
            break
        if isinstance(answer, Proposal):
            trials.append(Trial(len(trials) + 1, _METHOD, answer, 0))
        pending = [i for i, t in enumerate(trials) if t.pending]
        assert pending, "a searcher waits although nothing is pending"
        if len(pending) > lag or answer is Idle.WAIT:
            status = statuses[pending[0] % len(statuses)]
            trials[pending[0]] = told(trials[pending[0]], toy, status)
    return History(tuple(trials), _METHOD, start.base)


def same_history_same_proposal(searcher: Searcher) -> None:
    """The answer is a function of space, history and generator; other asks leave no trace."""
    for space in (_TOY.space(), tunable(_TOY.space())):
        for asks in (0, 3, 12):
            history = run(searcher, space, asks)
            first = searcher.propose(space, history, rng(99))
            run(searcher, space, 2)
            searcher.propose(tight(), began(tight()), rng(5))
            assert searcher.propose(space, history, rng(99)) == first


def resumed_equals_straight_through(searcher: Searcher) -> None:
    """A history that was written to disk and read again gives the same next proposal."""
    space = _TOY.space()
    history = run(searcher, space, 11)
    again = decode(History, encode(history))
    assert repr(again) == repr(history)
    fresh = from_spec(decode(Spec, encode(to_spec(searcher))))
    assert fresh == searcher
    assert fresh.propose(space, again, rng(99)) == searcher.propose(space, history, rng(99))


def proposals_are_allowed(searcher: Searcher) -> None:
    """Every proposal names the space's domains and keeps bounds and epoch caps."""
    spaces = (_TOY.space(), _TOY.space(budget=6000, max_epochs=2.0), tight(), tunable(tight()))
    for space in (*spaces, watching(_TOY.space())):
        for trial in run(searcher, space, 14).own:
            assert trial.mixture.names == space.names
            weights, within = trial.mixture.array(), space_of(space, trial.proposal)
            assert np.all(weights >= np.asarray(within.lower) - _TOLERANCE), trial.mixture
            assert np.all(weights <= within.ceiling() + _TOLERANCE), trial.mixture
            known = {each.name: each for each in space.params}
            for name, number in trial.proposal.params.items():
                assert known[name].allows(number), f"{name} = {number}"


def pending_trials_count(searcher: Searcher) -> None:
    """What is already asked is not asked again, told or not."""
    for space, lag in itertools.product((_TOY.space(), tunable(_TOY.space())), (0, 5)):
        trials = run(searcher, space, 14, lag).trials
        keys = [
            (
                t.mixture.array().round(6).tobytes(),
                tuple(t.proposal.params.items()),
                t.proposal.model,
                t.role,
                str(t.proposal.note),
            )
            for t in trials
        ]
        assert len(set(keys)) == len(keys), f"{type(searcher).__name__} asked twice for the same"


def parameters_are_all_said_or_none(searcher: Searcher) -> None:
    """A searcher sets each parameter or leaves all to the strategy; their names change nothing."""
    space = tunable(_TOY.space())
    renamed = [dataclasses.replace(each, name=f"{i}") for i, each in enumerate(space.params)]
    other = dataclasses.replace(space, params=tuple(renamed))
    first, second = run(searcher, space, 14), run(searcher, other, 14)
    for one, two in zip(first.own, second.own, strict=True):
        assert one.mixture == two.mixture
        assert list(one.proposal.params.values()) == list(two.proposal.params.values())
        assert not one.proposal.params or len(one.proposal.params) == len(space.params)


def failures_do_not_stop_it(searcher: Searcher) -> None:
    """Failed and stopped trials are part of life."""
    statuses = (Status.FAILED, Status.STOPPED, Status.DONE)
    run(searcher, _TOY.space(), 14, 2, statuses=statuses)
    run(searcher, _TOY.space(), 5, statuses=(Status.FAILED,))


def any_number_of_domains(searcher: Searcher) -> None:
    """One domain, two, and six work."""
    for size in (1, 2, 6):
        names = tuple(f"d{i}" for i in range(size))
        transfer = tuple(tuple(3.0 * (i == j) for j in range(size)) for i in range(size))
        toy = Toy(names, (0.5,) * size, (1.0,) * size, transfer, tuple(range(900, 900 + size)))
        run(searcher, toy.space(), 11, toy=toy)


SEARCHER_LAWS: tuple[Callable[[Searcher], None], ...] = (
    same_history_same_proposal,
    resumed_equals_straight_through,
    proposals_are_allowed,
    pending_trials_count,
    parameters_are_all_said_or_none,
    failures_do_not_stop_it,
    any_number_of_domains,
)


# ---- reweighters ----


def steered(size: int, targets: Sequence[str] = ()) -> Space:
    """`size` domains, the first called "math"; then `targets`, which are never trained on."""
    names = ["math", *(f"d{i}" for i in range(1, size)), *targets]
    domains = tuple(Domain(n, 100 * i, 900 * i, 400 * i) for i, n in enumerate(names, start=1))
    prior = Mixture.normalised(names, [1.0] * size + [0.0] * len(targets))
    upper = (1.0,) * size + (0.0,) * len(targets)
    count = len(names)
    return Space(domains, Budget(1000), prior, (0.0,) * count, upper, (float("inf"),) * count)


def excluding(space: Space, targets: Sequence[str] = ()) -> Space:
    """`space` and `targets` after its domains; these have an upper bound of 0."""
    more = tuple(Domain(name, 50, 500, 250) for name in targets)
    none = (0.0,) * len(more)
    domains = (*space.domains, *more)
    return dataclasses.replace(
        space,
        domains=domains,
        prior=space.prior.ordered([d.name for d in domains]),
        lower=(*space.lower, *none),
        upper=(*space.upper, *none),
        max_epochs=(*space.max_epochs, *(1.0 for _ in more)),
    )


def window(
    space: Space, step: int, seed: int = 7, absent: Sequence[int] = (), lr: float = 1e-3
) -> Signals:
    """Every signal there is after `step`, at random, but of the domains `absent` (by place)."""
    random, size = rng(step, seed), len(space.names)
    vectors = random.normal(size=(size, 4)) + 1.0
    gram = vectors @ vectors.T
    norms = np.sqrt(np.diag(gram))
    losses = {signal: random.uniform(0.2, 3.0, size) for signal in Signal}
    values: dict[Signal, Vector] = losses | {
        Signal.EXCESS_LOSS: random.normal(size=size),
        Signal.GRADIENT_GRAM: gram,
        Signal.HIDDEN_SIMILARITY: gram / np.outer(norms, norms),
    }
    # Domains that are only measured have no tokens in any window, though they have values.
    tokens = np.where(space.ceiling() > 0, random.integers(1, 99, size), 0).astype(np.float64)
    for place in absent:
        tokens[place] = 0
        for value in values.values():
            value[place] = np.nan
            if value.ndim == 2:
                value[:, place] = np.nan
    return Signals(step, lr, space.prior, tokens, values)


def steer(
    reweighter: Reweighter[Any], space: Space, windows: Sequence[Signals], steps: int = 100
) -> Iterator[tuple[Decision, Any]]:
    """Each decision and the state after it, from `init` on; states pass through JSON."""
    decision, state = reweighter.init(space, steps, 3)
    yield decision, state
    for signals in windows:
        decision, state = reweighter.update(json.loads(json.dumps(state)), signals)
        yield decision, state


def _windows(reweighter: Reweighter[Any], space: Space, count: int = 6) -> list[Signals]:
    return [window(space, reweighter.every * i) for i in range(1, count + 1)]


def _valid(space: Space, decision: Decision) -> None:
    """Raise AssertionError unless the mixtures are of the space."""
    never = space.ceiling() <= 0
    for mixture in (decision.sampling, decision.loss_weights, decision.gradient_weights):
        if mixture is not None:
            assert mixture.names == space.names
            assert not mixture.array()[never].any(), f"{mixture} weights what is never trained on"
    if decision.sampling is not None:
        weights = decision.sampling.array()
        assert np.all(weights >= np.asarray(space.lower) - _TOLERANCE), weights
        assert np.all(weights <= space.ceiling() + _TOLERANCE), weights


def same_state_and_signals_same_decision(reweighter: Reweighter[Any]) -> None:
    """A decision is a function of state and signals, and neither is written to."""
    space = steered(3, reweighter.targets)
    windows = _windows(reweighter, space)
    first, again = (list(steer(reweighter, space, windows)) for _ in range(2))
    assert first == again
    for (_, state), signals in zip(first, windows, strict=False):
        before = repr((state, signals))
        assert reweighter.update(state, signals) == reweighter.update(state, signals)
        assert repr((state, signals)) == before


def states_and_settings_are_json(reweighter: Reweighter[Any]) -> None:
    """Resumed from JSON, by a reweighter made again from its description, it decides the same."""
    fresh = from_spec(decode(Spec, json.loads(json.dumps(encode(to_spec(reweighter))))))
    assert fresh == reweighter
    space = steered(3, reweighter.targets)
    windows = _windows(reweighter, space)
    decision, state = reweighter.init(space, 100, 3)
    for straight in list(steer(fresh, space, windows)):
        assert straight == (decision, state)
        assert json.loads(json.dumps(state, allow_nan=False)) == state
        if windows:
            decision, state = reweighter.update(state, windows.pop(0))


def absent_domains_are_skipped(reweighter: Reweighter[Any]) -> None:
    """Domains without a token in the window have NaN; any of them, or all, may be absent."""
    space = steered(4, reweighter.targets)
    everyone = range(len(space.names))
    gone = [(0,), (1, 2), (0, 1, 2), tuple(everyone), (3,), ()]
    windows = [
        window(space, reweighter.every * i, absent=absent) for i, absent in enumerate(gone, 1)
    ]
    for decision, _ in steer(reweighter, space, windows):
        _valid(space, decision)


def decisions_are_allowed(reweighter: Reweighter[Any]) -> None:
    """Mixtures are of the space, sampling keeps bounds and caps, what is excluded gets nothing."""
    excluded = dataclasses.replace(steered(3), upper=(1.0, 1.0, 0.0))
    for plain in (_TOY.space(), _TOY.space(6000, max_epochs=2.0), tight(), excluded):
        space = excluding(plain, reweighter.targets)
        for decision, _ in steer(reweighter, space, _windows(reweighter, space)):
            _valid(space, decision)


def any_number_of_domains_is_steered(reweighter: Reweighter[Any]) -> None:
    """One domain, two, and six work; one always has all of the weight."""
    for size in (1, 2, 6):
        space = steered(size, reweighter.targets)
        for decision, _ in steer(reweighter, space, _windows(reweighter, space)):
            _valid(space, decision)
            mixtures = (decision.sampling, decision.loss_weights, decision.gradient_weights)
            if size == 1:
                assert all(mixture is None or mixture.weights[0] == 1.0 for mixture in mixtures)


REWEIGHTER_LAWS: tuple[Callable[[Reweighter[Any]], None], ...] = (
    same_state_and_signals_same_decision,
    states_and_settings_are_json,
    absent_domains_are_skipped,
    decisions_are_allowed,
    any_number_of_domains_is_steered,
)
