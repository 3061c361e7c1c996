"""IDEAL on the toy, whose influence is known without error."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest

from raymix.core.errors import MixtureError, SearchError
from raymix.core.forecast import forecast_of, realised
from raymix.core.influence import centred
from raymix.core.job import Diagnostic, Status
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.search.ideal import MODES, Ideal
from raymix.study.job import space_of
from raymix.testing.conformance import SEARCHER_LAWS, began, rng, run, tight, told
from raymix.testing.toy import Toy

TOY = Toy()
GROWING = Toy(full=1000)
"""More data lowers its losses: where the total is free."""

MEASURED = frozenset({Diagnostic.INFLUENCE})
SEARCHERS = (
    Ideal(),
    Ideal("paper"),
    Ideal(step=0.15, rounds=4, start="uniform"),
    Ideal(total="free", trust_region=True, keep_best=False),
    Ideal(line_search=True, rounds=4),
    Ideal("paper", line_search=True, trust_region=True, repeats=2, rounds=3),
    Ideal(resize=True, weighted=False, estimator="identity", start={"math": 0.2, "chat": 0.8}),
)


@pytest.mark.parametrize("law", SEARCHER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("searcher", SEARCHERS[:-1], ids=str)
def test_conformance(searcher, law):
    law(searcher)


@pytest.mark.parametrize("law", [*SEARCHER_LAWS[:2], *SEARCHER_LAWS[3:6]], ids=lambda f: f.__name__)
def test_conformance_with_shares_of_the_users_own(law):
    law(SEARCHERS[-1])


def regret(history: History, best: float, toy: Toy = TOY) -> float:
    return min(toy.mean_loss(t.mixture) for t in history.own) - best


def constrained(space: Space) -> float:
    """The least mean loss inside the bounds, by a local solver (the problem is convex)."""
    from scipy import optimize

    found = optimize.minimize(
        lambda p: TOY.losses(p).mean(),
        space.project(space.uniform().array()).array(),
        method="SLSQP",
        bounds=list(zip(space.lower, space.ceiling(), strict=True)),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    return float(found.fun)


# ---- ground truth ----


def test_it_finds_the_optimum():
    best = TOY.mean_loss(TOY.optimum())
    start = TOY.mean_loss(TOY.space().prior) - best
    assert regret(run(Ideal(), TOY.space(), 99), best) < 0.03 * start
    assert regret(run(Ideal(rounds=30), TOY.space(), 99), best) < 1e-9
    assert regret(run(Ideal(step=0.15, rounds=4), TOY.space(), 99), best) < 0.3 * start


@pytest.mark.parametrize(
    "space", [tight(), TOY.space(4000, max_epochs=1.0), TOY.space(6000, max_epochs=2.0)], ids=repr
)
def test_it_finds_the_optimum_inside_bounds_and_caps_that_bind(space):
    best = constrained(space)
    assert best > TOY.mean_loss(TOY.optimum()) + 1e-3, "they do bind"
    assert regret(run(Ideal(rounds=25), space, 99), best) < 1e-8


def test_a_domain_at_its_cap_does_not_set_the_others_scale():
    space = TOY.space(4000, max_epochs=1.0)
    history = run(Ideal(rounds=4, start={"math": 0.25, "code": 0.25, "chat": 0.5}), space, 99)
    first = history.own[1]
    assert first.mixture.as_dict()["math"] == pytest.approx(0.25)
    beta = first.proposal.note["beta"]
    assert beta["code"] == pytest.approx(0.5)
    assert beta["chat"] == pytest.approx(-0.5)


def test_influences_sum_to_nothing_at_the_optimum():
    optimum = TOY.optimum()
    influence = TOY.influence(optimum)
    found = centred(influence.aggregate(influence.effect()), optimum)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    # With counts of its own for each domain there is none; a total of 0 is a matter of centring.
    away = centred(influence.effect(), TOY.space().prior)
    np.testing.assert_allclose(away.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("total", ["fixed", "free"])
@pytest.mark.parametrize("resize", [False, True])
def test_small_steps_do_what_was_predicted(total, resize):
    searcher = Ideal(step=1e-4, total=total, resize=resize, rounds=2, control=False)
    space = GROWING.space(100_000)
    toy = replace(GROWING, full=100_000)
    for trial in run(searcher, space, 99, toy=toy).own[1:]:
        forecast = forecast_of(trial.proposal)
        found = realised(forecast, trial.result.metrics)
        assert found.keys() == forecast.predicted.keys()
        moved = {n: x for n, x in forecast.predicted.items() if abs(x) > 1e-7}
        assert len(moved) >= 2
        for name, change in moved.items():
            # A whole number of examples is drawn: the total is a fraction of one off.
            assert found[name] / change == pytest.approx(1, abs=2e-3 if total == "fixed" else 0.1)


def test_large_steps_do_less_than_predicted():
    first = run(Ideal(), TOY.space(), 99).own[1]
    forecast = forecast_of(first.proposal)
    found = realised(forecast, first.result.metrics)
    assert 0.3 < found["math"] / forecast.predicted["math"] < 1


# ---- the steps ----


def test_the_default_step_by_hand():
    history = run(Ideal(), TOY.space(), 99)
    start, first = history.own[:2]
    influence = TOY.influence(start.mixture)
    effect = centred(influence.aggregate(influence.effect()), start.mixture)
    beta = -0.5 * effect / np.abs(effect).max()
    assert list(first.proposal.note["beta"].values()) == pytest.approx(beta.tolist())
    wanted = start.mixture.array() * (1 + beta)
    np.testing.assert_allclose(first.mixture.array(), wanted / wanted.sum())
    assert first.proposal.budget is first.proposal.pools is None
    note = dict(first.proposal.note)
    assert note["forecast"]["parent"] == start.number
    assert (note["kind"], note["round"], note["parent"]) == ("step", 1, [start.number])
    assert (note["step"], note["width"], note["repeat"], note["scaled"]) == (0.5, 1.0, 0, True)
    assert start.proposal.note == {
        "kind": "start",
        "round": 0,
        "step": 0.5,
        "parent": [],
        "width": 0.0,
        "repeat": 0,
    }


def test_only_the_last_round_is_not_measured():
    own = run(Ideal(), TOY.space(), 99).own
    assert [t.proposal.measure for t in own] == [MEASURED] * 3 + [frozenset()]
    assert not any(t.proposal.keep for t in own)
    (only,) = run(Ideal(rounds=0), TOY.space(), 99).own
    assert not only.proposal.measure


def test_paper_mode_by_hand():
    history = run(Ideal("paper"), GROWING.space(), 99, toy=GROWING)
    start, first, second, control = history.own
    # Less than one epoch of each: the pools are what is drawn.
    assert start.proposal.pools == (100, 300, 600)
    influence = GROWING.influence(start.mixture)
    gradients = influence.aggregate(influence.effect(weighted=False))
    beta = -0.15 * gradients / np.abs(gradients).max()
    counts = np.array([100, 300, 600]) * (1 + beta)
    assert first.proposal.budget == Budget(round(counts.sum()))
    np.testing.assert_allclose(
        first.mixture.array() * first.proposal.budget.amount, counts, atol=0.5
    )
    assert first.proposal.pools == tuple(
        math.ceil(c) for c in first.mixture.array() * first.proposal.budget.amount
    )
    # The same amount of data at the mixture of the start: what more data alone would have done.
    assert control.proposal.note["kind"] == "control"
    assert control.proposal.budget == second.proposal.budget
    assert control.mixture.weights == pytest.approx(start.mixture.weights)
    assert not control.proposal.measure
    assert sum(control.proposal.pools) == pytest.approx(control.proposal.budget.amount, abs=3)


def test_a_budget_of_its_own():
    history = run(Ideal(budget=500, rounds=2), GROWING.space(), 99, toy=GROWING)
    assert {t.proposal.budget for t in history.own} == {Budget(500)}
    free = run(Ideal("paper", budget=500, rounds=1), GROWING.space(), 99, toy=GROWING).own
    assert free[0].proposal.budget == Budget(500)
    assert free[1].proposal.budget != Budget(500)
    assert free[2].proposal.budget == free[1].proposal.budget


def test_paper_mode_keeps_the_number_of_epochs_until_rows_run_out():
    # 20,000 draws: math twice, code twice, chat twice. With a scarce math of 150 rows: 13 times.
    space = GROWING.space(20_000)
    toy = replace(GROWING, full=20_000)
    own = run(Ideal("paper", step=0.5, rounds=4), space, 99, toy=toy).own
    assert own[0].proposal.pools is None, "all rows, twice"
    for trial in own[1:]:
        pools = np.array(trial.proposal.pools or toy.sizes)
        counts = trial.mixture.array() * trial.proposal.budget.amount
        epochs = counts / pools
        assert np.all((pools == toy.sizes) | (np.abs(epochs - 2) < 0.01)), epochs
    assert epochs.max() > 3, "more than two copies and a remainder of what is wanted most"


def test_every_domain_counts_by_its_size():
    # a is tiny and steep, b large and less so: the mean gradient is a's, the derivative is b's.
    toy = Toy(("a", "b"), (0, 0), (1, 1), ((3.0, 0.0), (0.0, 2.0)), (10, 990), full=1000)
    weighted = run(Ideal("paper", weighted=True), toy.space(), 9, toy=toy).own[1]
    plain = run(Ideal("paper"), toy.space(), 9, toy=toy).own[1]
    assert plain.proposal.note["beta"]["a"] == pytest.approx(0.15)
    assert plain.proposal.note["beta"]["b"] < 0.05
    assert weighted.proposal.note["beta"]["b"] == pytest.approx(0.15)
    assert weighted.proposal.note["beta"]["a"] < 0.05
    # What is predicted is the derivative in either case.
    for trial in (weighted, plain):
        forecast = forecast_of(trial.proposal)
        found = realised(forecast, trial.result.metrics)
        for name, change in forecast.predicted.items():
            assert found[name] == pytest.approx(change, rel=0.3, abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_starts(mode):
    space = TOY.space()
    starts = {
        None: (0.1, 0.3, 0.6),
        "prior": (0.1, 0.3, 0.6),
        "uniform": (1 / 3,) * 3,
        "proportional": (0.1, 0.3, 0.6),
    }
    for start, weights in starts.items():
        first = Ideal(mode, start=start).propose(space, began(space), rng(0))
        assert first.mixture.weights == pytest.approx(weights)
    own = Ideal(mode, start={"chat": 0.5, "code": 0.5}).propose(space, began(space), rng(0))
    assert own.mixture.weights == (0, 0.5, 0.5)
    with pytest.raises(MixtureError, match="unknown domain 'maths'"):
        Ideal(start={"maths": 1.0}).propose(space, began(space), rng(0))


def test_a_domain_without_a_share_never_comes_back():
    own = run(Ideal(start={"chat": 0.5, "code": 0.5}), TOY.space(), 99).own
    assert all(t.mixture.as_dict()["math"] < 1e-12 for t in own)


# ---- going back ----


def test_the_best_is_kept_and_the_step_halved():
    # Two domains alike, the start just beside the optimum: a step of .5 overshoots.
    toy = Toy(("a", "b"), (0, 0), (1, 1), ((4, 0), (0, 4)), (480, 520))
    own = run(Ideal(rounds=5), toy.space(), 99, toy=toy).own
    scores = [t.score for t in own]
    assert scores[1] > scores[0]
    assert [t.proposal.note["parent"] for t in own[1:4]] == [[own[0].number]] * 3
    assert [t.proposal.note["step"] for t in own[1:4]] == [0.5, 0.25, 0.125]
    assert own[2].proposal.note["verdict"]["reason"] == "worse than its parent"
    assert not own[2].proposal.note["verdict"]["accepted"]
    # Without keeping the best it goes on from what is worse, the step unchanged.
    plain = run(Ideal(rounds=5, keep_best=False), toy.space(), 99, toy=toy).own
    assert [t.proposal.note["parent"][0] for t in plain[1:]] == [t.number for t in plain[:-1]]
    # It would bounce between two mixtures: what was trained before is not trained again.
    assert [t.proposal.note["step"] for t in plain[:3]] == [0.5, 0.5, 0.25]
    assert len({t.mixture for t in plain}) == len(plain)


def test_trust_region_goes_back_where_the_influence_points_the_wrong_way():
    searcher = Ideal(rounds=4, keep_best=False, trust_region=True, estimator="adam")
    own = run(searcher, TOY.space(), 99).own
    # The toy's "adam" is the opposite of the truth.
    assert [t.proposal.note["parent"] for t in own[1:]] == [[own[0].number]] * 4
    assert [t.proposal.note["step"] for t in own[1:]] == [0.5, 0.25, 0.125, 0.0625]
    assert not own[1].proposal.note["scaled"]
    verdict = own[2].proposal.note["verdict"]
    assert verdict["reason"] == "losses moved against the prediction"
    assert verdict["scale"] < 0
    assert {"math", "code"} <= set(verdict["wrong"])
    # Within noise nothing is held against it.
    noisy = run(replace(searcher, noise=9.0), TOY.space(), 99).own
    assert noisy[2].proposal.note["parent"] == [noisy[1].number]
    assert noisy[2].proposal.note["step"] == 0.5


def test_trust_region_grows_back_to_the_step_but_not_beyond():
    searcher = Ideal(step=0.1, rounds=6, trust_region=True, estimator="identity")
    space = TOY.space()
    history = run(searcher, space, 2)
    # The first step fails, the others do as predicted: identity's scale does not matter.
    broken = told(replace(history.own[1], result=None), TOY, Status.FAILED)
    history = replace(history, trials=(*history.trials[:-1], broken))
    steps = []
    while (proposal := searcher.propose(space, history, rng(0))) is not Idle.DONE:
        steps.append(proposal.note["step"])
        trial = told(Trial(len(history) + 1, history.method, proposal, 0), TOY)
        history = replace(history, trials=(*history.trials, trial))
    assert steps == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1])


# ---- line search ----


def test_line_search_trains_all_widths_at_once_and_measures_the_winner():
    searcher = Ideal(line_search=True, rounds=2)
    space, history = TOY.space(), began(TOY.space())

    def ask() -> Proposal | Idle:
        return searcher.propose(space, history, rng(0))

    def add(proposal: Proposal) -> Trial:
        nonlocal history
        trial = Trial(len(history) + 1, history.method, proposal, 0)
        history = replace(history, trials=(*history.trials, trial))
        return trial

    def tell(trial: Trial) -> None:
        nonlocal history
        trials = [told(t, TOY) if t.number == trial.number else t for t in history.trials]
        history = replace(history, trials=tuple(trials))

    start = add(ask())
    assert start.proposal.measure == MEASURED
    assert ask() is Idle.WAIT
    tell(start)
    widths = [add(ask()) for _ in range(4)]
    assert [t.proposal.note["width"] for t in widths] == [0.5, 1.0, 2.0, -1.0]
    assert [t.proposal.keep for t in widths] == [True, True, True, False]
    assert not any(t.proposal.measure for t in widths)
    assert len({t.mixture for t in widths}) == 4
    for trial in widths:
        assert ask() is Idle.WAIT
        tell(trial)
    scores = {t.number: t.score for t in history.own}
    assert scores[widths[3].number] > scores[start.number], "the other direction is worse"
    winner = min(widths, key=lambda t: scores[t.number])
    measure = add(ask())
    assert measure.role is Role.MEASURE
    assert measure.proposal == Proposal(
        winner.mixture,
        measure=MEASURED,
        start=winner.number,
        role=Role.MEASURE,
        note={
            "kind": "measure",
            "round": 1,
            "width": winner.proposal.note["width"],
            "repeat": 0,
            "parent": [winner.number],
        },
    )
    assert ask() is Idle.WAIT
    tell(measure)
    last = [add(ask()) for _ in range(4)]
    assert all(t.proposal.note["parent"] == [winner.number] for t in last)
    assert not any(t.proposal.keep or t.proposal.measure for t in last)
    for trial in last:
        tell(trial)
    assert ask() is Idle.DONE, "nothing is measured after the last round"


def test_the_control_is_never_gone_on_from():
    # "adam" is the opposite of the truth here: only the control gets better.
    own = run(Ideal(line_search=True, rounds=3, estimator="adam"), TOY.space(), 99).own
    control = [t for t in own if t.proposal.note["width"] < 0]
    assert min(t.score for t in control) < own[0].score
    assert not any(t.role is Role.MEASURE for t in own)
    assert {t.proposal.note["parent"][0] for t in own[1:]} == {own[0].number}


def test_what_line_search_tried_before_is_not_tried_again():
    # Half of a step that was halved was trained a round earlier.
    own = run(Ideal(line_search=True, rounds=3, estimator="adam"), TOY.space(), 99).own
    later = [
        t.proposal.note["step"] * t.proposal.note["width"]
        for t in own
        if t.proposal.note["round"] == 2
    ]
    assert later == [0.125, -0.25]


def test_line_search_gets_there_in_fewer_rounds():
    best = TOY.mean_loss(TOY.optimum())
    space = TOY.space()
    searched = regret(run(Ideal(step=0.15, rounds=2, line_search=True), space, 99), best)
    assert searched < regret(run(Ideal(step=0.15, rounds=2), space, 99), best)


# ---- repeats ----


def test_repeats_are_paired_by_their_seed():
    own = run(Ideal(repeats=3, rounds=1), TOY.space(), 99).own
    assert [t.proposal.repeat for t in own] == [0, 1, 2] * 2
    assert len({t.mixture for t in own[:3]}) == len({t.mixture for t in own[3:]}) == 1
    parents = [forecast_of(t.proposal).parent for t in own[3:]]
    assert parents == [t.number for t in own[:3]]
    assert own[3].proposal.note["parent"] == parents
    # The other two wait for nothing; the next round waits for all.
    history = run(Ideal(repeats=3), TOY.space(), 3, lag=9)
    assert sum(t.pending for t in history.own) == 3
    assert Ideal(repeats=3).propose(TOY.space(), history, rng(0)) is Idle.WAIT


def test_influences_are_averaged_over_repeats():
    history = run(Ideal(repeats=2), TOY.space(), 2)
    first, second = history.own
    # Of the second repeat the opposite was measured: nothing is left.
    key = Diagnostic.INFLUENCE.value
    plain = second.result.diagnostics[key]
    turned = {name: [[-x for x in row] for row in m] for name, m in plain["estimates"].items()}
    result = replace(second.result, diagnostics={key: {**plain, "estimates": turned}})
    trials = (*history.trials[:-1], replace(second, result=result))
    assert Ideal(repeats=2).propose(TOY.space(), replace(history, trials=trials), rng(0)) is (
        Idle.DONE
    )
    assert first.result.diagnostics[key] == plain


# ---- what goes wrong ----


def statuses(searcher: Ideal, *found: Status) -> tuple[Trial, ...]:
    """A search in which the trials end as told, the last status for all others."""
    space = TOY.space()
    history = began(space)
    while True:
        proposal = searcher.propose(space, history, rng(0))
        if proposal is Idle.DONE:
            return history.own
        status = found[min(len(history.own), len(found) - 1)]
        trial = told(Trial(len(history) + 1, history.method, proposal, 0), TOY, status)
        history = replace(history, trials=(*history.trials, trial))


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_round_goes_back_with_half_the_step(mode):
    own = statuses(Ideal(mode, rounds=3, control=False), Status.DONE, Status.FAILED, Status.DONE)
    assert len(own) == 4
    assert own[2].proposal.note["parent"] == [own[0].number]
    step = own[1].proposal.note["step"]
    assert own[2].proposal.note["step"] == step / 2
    assert own[2].proposal.note["verdict"]["reason"] == "no training of it ended"
    assert own[3].proposal.note["parent"] == [own[2].number]


def test_a_failed_start_ends_the_search():
    assert len(statuses(Ideal(), Status.FAILED)) == 1
    assert len(statuses(Ideal(repeats=2), Status.FAILED)) == 2
    # One repeat is enough to go on.
    own = statuses(Ideal(repeats=2, rounds=1), Status.FAILED, Status.DONE)
    assert len(own) == 4
    assert {forecast_of(t.proposal).parent for t in own[2:]} == {own[1].number}


def test_all_rounds_failing_ends_it_in_time():
    assert len(statuses(Ideal(rounds=5), Status.DONE, Status.FAILED)) == 6
    # A line search that fails tries half the step: half of that and the control are new.
    own = statuses(Ideal(rounds=5, line_search=True), Status.DONE, Status.FAILED)
    assert len(own) <= 1 + 5 * 4


def test_a_winner_whose_measurement_fails_is_gone_back_from():
    searcher = Ideal(rounds=2, line_search=True, widths=(1.0,))
    own = statuses(searcher, Status.DONE, Status.DONE, Status.FAILED, Status.DONE)
    assert [t.proposal.note["kind"] for t in own] == ["start", "step", "measure", "step"]
    assert own[3].proposal.note["parent"] == [own[0].number]
    assert own[3].proposal.note["verdict"]["reason"] == "its influence could not be measured"


def test_a_trial_without_its_influence_is_named():
    history = run(Ideal(), TOY.space(), 1)
    (start,) = history.own
    bare = replace(start, result=replace(start.result, diagnostics={}))
    trials = (*history.trials[:-1], bare)
    with pytest.raises(SearchError, match=rf"trial {start.number} of 'method' was asked for the"):
        Ideal().propose(TOY.space(), replace(history, trials=trials), rng(0))
    # One that was stopped has perhaps none; the search ends.
    stopped = replace(bare, result=replace(bare.result, status=Status.STOPPED))
    trials = (*history.trials[:-1], stopped)
    assert Ideal().propose(TOY.space(), replace(history, trials=trials), rng(0)) is Idle.DONE


def test_an_influence_that_does_not_fit_is_refused():
    history = run(Ideal(), TOY.space(), 1)
    with pytest.raises(SearchError, match="no influence by 'kfac' was measured, but by: ekfac"):
        Ideal(estimator="kfac").propose(TOY.space(), history, rng(0))
    (start,) = history.own
    key = Diagnostic.INFLUENCE.value
    plain = start.result.diagnostics[key]
    for changed, message in (
        ({"domains": ["x", "y", "z"]}, "the influence of x, y, z was measured, not of math"),
        ({"estimates": {"ekfac": [[math.nan] * 3] * 3}}, "is not a finite number"),
        ({"slope": [math.nan] * 3}, "has no slope of the objective"),
    ):
        result = replace(start.result, diagnostics={key: {**plain, **changed}})
        trials = (*history.trials[:-1], replace(start, result=result))
        with pytest.raises(SearchError, match=message):
            Ideal().propose(TOY.space(), replace(history, trials=trials), rng(0))


def test_the_order_of_measured_domains_does_not_matter():
    history = run(Ideal(), TOY.space(), 1)
    (start,) = history.own
    turned = Toy(*(tuple(reversed(x)) for x in (TOY.names, TOY.c, TOY.k)), TOY.t)
    turned = replace(turned, t=tuple(tuple(reversed(row)) for row in reversed(TOY.t)))
    other = told(replace(start, result=None), turned)
    trials = (*history.trials[:-1], other)
    a = Ideal().propose(TOY.space(), history, rng(0))
    b = Ideal().propose(TOY.space(), replace(history, trials=trials), rng(0))
    np.testing.assert_allclose(a.mixture.array(), b.mixture.array(), rtol=1e-12)
    assert a.note["forecast"]["predicted"] == pytest.approx(b.note["forecast"]["predicted"])


def test_a_search_cannot_go_on_with_other_settings():
    history = run(Ideal(), TOY.space(), 3)
    with pytest.raises(SearchError, match="asked with other settings than now"):
        Ideal(line_search=True).propose(TOY.space(), history, rng(0))
    # More rounds are no other settings. The last of a shorter search was not measured.
    whole = run(Ideal(rounds=2), TOY.space(), 99)
    more = Ideal(rounds=3).propose(TOY.space(), whole, rng(0))
    assert more.note["parent"] == [whole.own[1].number]
    assert more.note["verdict"]["reason"] == "its influence could not be measured"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "best"}, "Ideal.mode must be fixed or paper, got 'best'"),
        ({"step": 0.0}, "Ideal.step must be above 0 and at most 1, got 0.0"),
        ({"step": math.nan}, "Ideal.step"),
        ({"rounds": -1}, "Ideal.rounds must not be negative, got -1"),
        ({"total": "open"}, "Ideal.total must be fixed or free, got 'open'"),
        ({"repeats": 0}, "Ideal.repeats must be at least 1, got 0"),
        ({"widths": (-1.0,)}, "Ideal.widths"),
        ({"widths": (1.0, 0.0)}, "Ideal.widths"),
        ({"widths": ()}, "Ideal.widths"),
        ({"noise": -1.0}, "Ideal.noise"),
        ({"estimator": "hessian"}, "Ideal.estimator must be one of ekfac, .* got 'hessian'"),
        ({"start": "median"}, "Ideal.start must be prior, uniform, .* got 'median'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(SearchError, match=message):
        Ideal(**fields)


def test_modes_are_defaults():
    assert Ideal().rules() == MODES["fixed"]
    assert Ideal("paper").rules() == MODES["paper"]
    mixed = Ideal("paper", total="fixed", weighted=True, step=0.3).rules()
    assert mixed == replace(MODES["paper"], total="fixed", weighted=True, step=0.3)
    assert Ideal("paper", keep_best=True, resize=False).rules().keep_best
    assert dataclasses.is_dataclass(Ideal())


@pytest.mark.parametrize("searcher", SEARCHERS[:-1], ids=str)
@pytest.mark.parametrize("space", [tight(), TOY.space(6000, max_epochs=2.0)], ids=("tight", "caps"))
def test_every_proposal_is_allowed_in_its_own_space(searcher, space):
    toy = replace(TOY, full=space.budget.amount)
    for trial in run(searcher, space, 99, toy=toy).own:
        within = space_of(space, trial.proposal)
        weights = trial.mixture.array()
        assert np.all(weights >= np.asarray(within.lower) - 1e-9)
        assert np.all(weights <= within.ceiling() + 1e-9)


def test_names_come_in_the_order_of_the_space():
    proposal = Ideal().propose(TOY.space(), began(TOY.space()), rng(0))
    assert proposal.mixture.names == TOY.names
    assert isinstance(proposal.mixture, Mixture)
