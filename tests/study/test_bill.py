"""One bill: what a training costs in units, what is foreseen, and a search that runs out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from raymix.core.codec import decode, encode, to_spec
from raymix.core.errors import ConfigError, StudyError
from raymix.core.job import Diagnostic, Point, Report, Spent, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.report.facts import facts
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.search.online import Online
from raymix.search.proxy import Proxy
from raymix.strategy.multitask import MultiTask
from raymix.study.bill import affordable, bills, foreseen, spent, units
from raymix.study.groups import Member
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded, trainings
from raymix.study.record import equal_histories, read
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
BUDGET = TOY.space().budget
MIX = TOY.space().prior
MOS = to_spec(MoS())
INFLUENCE = frozenset({Diagnostic.INFLUENCE})


def trial(
    number: int,
    proposal: Proposal,
    status: Status | None = Status.DONE,
    progress: Sequence[float] = (0.5, 1.0),
    **cost: int,
) -> Trial:
    """A trial of `m`; `status` None: still open. It used 10 tokens a row unless told otherwise."""
    if status is None:
        return Trial(number, "m", proposal, 0)
    curve = tuple(Point(i, p, {}) for i, p in enumerate(progress))
    amount = (proposal.budget or BUDGET).amount
    own = {"rows": amount, "tokens": 10 * amount, **cost}
    result = TrainResult(status, {}, curve, spent=Spent(**own))
    return Trial(number, "m", proposal, 0, result, 1.0)


def history(*trials: Trial) -> History:
    return History(trials, "m")


# ---- told ----


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        (trial(1, Proposal(MIX)), 1.0),
        (trial(1, Proposal(MIX, Budget(250))), 0.25),
        (trial(1, Proposal(MIX, Budget(1500))), 1.5),
        (trial(1, Proposal(MIX), Status.STOPPED, (0.1, 0.3), rows=310), 0.3),
        (trial(1, Proposal(MIX, Budget(500)), Status.STOPPED, (0.2,)), 0.1),
        (trial(1, Proposal(MIX), Status.FAILED, (0.25, 0.5), rows=500, tokens=5000), 0.5),
        # It went on after its last point, or never came to one, and had paid for extra work.
        (trial(1, Proposal(MIX), Status.FAILED, (0.25, 0.5), rows=700, tokens=7000), 0.7),
        (trial(1, Proposal(MIX), Status.FAILED, (), rows=120, tokens=1200, extra=400), 0.16),
        (trial(1, Proposal(MIX), Status.FAILED, (), rows=0, tokens=0), 0.0),
        (trial(1, Proposal(MIX), None), 0.0),
        # A proxy, whole and half of it.
        (trial(1, Proposal(MIX, Budget(400), model="small", role=Role.PROXY)), 0.4),
        (
            trial(1, Proposal(MIX, Budget(400), role=Role.PROXY), Status.FAILED, (0.5,), rows=99),
            0.2,
        ),
        # Half of it was another's: it has paid 500 of 1000 rows.
        (trial(2, Proposal(MIX, branch=1), rows=500, tokens=5000), 0.5),
        # Tokens where the study counts rows: 100 rows were drawn.
        (trial(1, Proposal(MIX, Budget(900, Unit.TOKENS)), rows=100, tokens=900), 0.1),
        # Its 1000 rows had 10,000 tokens; 4,000 more passed through the model.
        (trial(1, Proposal(MIX, measure=INFLUENCE), extra=4000), 1.4),
        # 500 rows, 5,000 tokens: a whole training would have 10,000.
        (trial(1, Proposal(MIX, Budget(500), reweighter=MOS), extra=1000), 0.6),
        (
            trial(
                1,
                Proposal(MIX, reweighter=MOS),
                Status.STOPPED,
                (0.5,),
                rows=500,
                tokens=5000,
                extra=500,
            ),
            0.55,
        ),
        (trial(1, Proposal(MIX, note={"charged": [2]})), 2.0),
    ],
)
def test_what_a_trial_has_cost(told, cost):
    assert units(told, BUDGET) == pytest.approx(cost, abs=1e-12)


def test_a_measurement_is_held_against_the_steps_of_what_it_measures():
    source = trial(3, Proposal(MIX, Budget(500)))
    proposal = Proposal(MIX, Budget(500), start=3, measure=INFLUENCE, role=Role.MEASURE)
    measure = trial(4, proposal, tokens=0, rows=0, extra=2500)
    assert units(measure, BUDGET, [source, measure]) == pytest.approx(0.25)
    assert units(measure, BUDGET) == 0.0


def test_costs_written_before_there_was_extra_are_read():
    old = {name: value for name, value in encode(Spent(3, 4, 5)).items() if name != "extra"}
    assert decode(Spent, old) == Spent(3, 4, 5)


# ---- foreseen ----


def test_what_is_foreseen_is_the_budget_and_the_extra_of_the_latest_of_its_kind():
    measured = Proposal(MIX, measure=INFLUENCE)
    assert foreseen(measured, history(), BUDGET) == 1.0
    known = history(
        trial(1, measured, extra=4000),
        trial(2, measured, extra=3000),
        trial(3, measured, Status.FAILED, (0.5,), extra=9000),
        trial(4, measured, None),
        trial(5, Proposal(MIX), extra=100),
        trial(6, replace(measured, reweighter=MOS), extra=700),
    )
    assert foreseen(measured, known, BUDGET) == pytest.approx(1.3)
    assert foreseen(Proposal(MIX), known, BUDGET) == 1.0
    assert foreseen(Proposal(MIX, reweighter=MOS), known, BUDGET) == 1.0
    assert foreseen(replace(measured, reweighter=MOS), known, BUDGET) == pytest.approx(1.07)
    other = Trial(9, "other", measured, 0, known.trials[0].result, 1.0)
    assert foreseen(measured, history(other), BUDGET) == 1.0, "of its own trainings only"


def test_a_measurement_and_a_branch_pay_for_what_they_do():
    start = trial(1, Proposal(MIX, Budget(500)))
    asked = Proposal(MIX, Budget(500), start=1, measure=INFLUENCE, role=Role.MEASURE)
    first = trial(2, asked, tokens=0, rows=0, extra=2500)
    assert foreseen(asked, history(start), BUDGET) == 0.0
    assert foreseen(asked, history(start, first), BUDGET) == pytest.approx(0.25)
    trunk = trial(1, Proposal(MIX, turn=0.75))
    assert foreseen(Proposal(MIX, branch=1), history(trunk), BUDGET) == pytest.approx(0.25)


def test_another_unit_cannot_be_foreseen():
    with pytest.raises(StudyError, match="900 tokens cannot be held against a bill in trainings"):
        foreseen(Proposal(MIX, Budget(900, Unit.TOKENS)), history(), BUDGET)


def test_told_and_open_trials_count():
    known = history(
        trial(1, Proposal(MIX), Status.STOPPED, (0.25,)),
        trial(2, Proposal(MIX, Budget(500))),
        trial(3, Proposal(MIX), None),
    )
    assert spent(known, BUDGET) == pytest.approx((0.75, 1.0))
    third = Proposal(MIX, Budget(250))
    assert affordable(third, known, BUDGET, 2.0)
    assert affordable(third, known, BUDGET, 2.0 - 1e-7), "float dust"
    assert not affordable(third, known, BUDGET, 1.999)
    assert affordable(third, known, BUDGET, None)


def test_bills_by_method():
    base = Trial(0, "base", Proposal(MIX, role=Role.MEASURE), 0)
    bare = trial(1, Proposal(MIX, role=Role.BASELINE))
    again = trial(5, Proposal(MIX, role=Role.CONFIRM))
    trials = (
        base,
        replace(bare, method="uniform"),
        replace(trial(2, Proposal(MIX)), method="a#0"),
        replace(trial(3, Proposal(MIX), None), method="a#0"),
        replace(trial(4, Proposal(MIX, Budget(500)), extra=1000), method="a#1"),
        replace(again, method="confirm"),
    )
    members = {"a#0": Member("a", 0), "a#1": Member("a", 1)}
    found = bills(History(trials), members, BUDGET, 3.0)
    assert list(found) == ["a#0", "a#1"]
    first, second = found.values()
    assert (first.member, first.spent, first.pending, first.unspent) == (Member("a", 0), 1, 1, 1)
    assert (second.spent, second.pending, second.unspent) == pytest.approx((0.6, 0.0, 2.4))
    assert bills(History(trials), members, BUDGET)["a#0"].unspent == math.inf


# ---- in a study ----


@dataclass(frozen=True)
class Costly:
    """The toy; influence costs a quarter of a training, a reweighter a tenth of its training."""

    toy: Toy = TOY

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        return [self._costed(job, *self.toy.run([job], report)) for job in jobs]

    def _costed(self, job: TrainJob, result: TrainResult) -> TrainResult:
        extra = 2500 * bool(job.measure)
        if any(stage.reweighter for stage in job.stages):
            extra += result.spent.tokens // 10
        mean = Mixture.of({"math": 0.4, "code": 0.35, "chat": 0.25})
        return replace(result, spent=replace(result.spent, extra=extra), mean_mixture=mean)


def plan(*methods: Method, **fields: object) -> Plan:
    settings = {"confirm": Confirm(0, 0), "seed": 5, **fields}
    return Plan(TOY.space(), MultiTask(), Objective(), methods, **settings)


def finished(folder: Path, the_plan: Plan, resume: bool = False) -> History:
    study = Study(folder, the_plan, {}, resume=resume)
    try:
        run_serial(study, Costly())
        return study.history
    finally:
        study.close()


ALL = (
    *seeded(Method("random", Dirichlet(), 99), 2),
    Method("doremi", Proxy(to_spec(DoReMi()), model="small", budget=400, rounds=9), 99),
    Method("mos", Online(MOS), 99),
    Method("ideal", Ideal(rounds=9), 99),
    Method("lines", Ideal(rounds=9, line_search=True), 99),
)


def test_every_method_is_cut_by_its_bill(tmp_path):
    history = finished(tmp_path, plan(*ALL, bill=3.2))
    counts = {m.name: len([t for t in history if t.method == m.name]) for m in ALL}
    found = bills(history, plan(*ALL).members, BUDGET, 3.2)
    # DoReMi: reference .4 and proxy .44; the rounds find the same, so the final comes: 2.68.
    # IDEAL: 1 + .25, twice; the third would be another 1.25. Its line search: start, two widths.
    assert counts == {
        "random#0": 3,
        "random#1": 3,
        "doremi": 5,
        "mos": 1,
        "ideal": 2,
        "lines": 2,
    }
    costs = {name: bill.spent for name, bill in found.items()}
    assert costs == pytest.approx(
        {"random#0": 3, "random#1": 3, "doremi": 2.68, "mos": 1.1, "ideal": 2.5, "lines": 2.25}
    )
    for bill in found.values():
        assert bill.unspent == pytest.approx(3.2 - bill.spent)
    known = facts(read(tmp_path))
    assert (known.bill, known.bills) == (3.2, found)


def test_resumed_after_every_event_it_is_the_same_study(tmp_path):
    asked = plan(*ALL, bill=3.2)
    whole = finished(tmp_path / "whole", asked)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines) + 1, 9):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:cut]))
        assert equal_histories(finished(folder, asked, resume=True), whole), cut


def test_a_larger_bill_goes_on(tmp_path):
    finished(tmp_path, plan(ALL[0], bill=2))
    history = finished(tmp_path, plan(ALL[0], bill=4), resume=True)
    assert len([t for t in history if t.role is Role.SEARCH]) == 4
    assert read(tmp_path).bill == 4


def test_what_open_trials_leave_is_asked_for_when_they_end(tmp_path):
    study = Study(tmp_path, plan(Method("random", Dirichlet(), 99), bill=2.5), {})
    study.tell(study.ask().number, TOY.run([study.job(study.history.trials[0])], stay)[0])
    for _ in range(2):
        study.tell(study.ask().number, TOY.run([study.job(study.history.trials[-1])], stay)[0])
    first, second = study.ask(), study.ask()
    assert not isinstance(study.ask(), Trial), "a third would be more than 2.5"
    early = TOY.run([study.job(first)], lambda trial, point: False)[0]
    assert early.status is Status.STOPPED
    assert study.tell(first.number, early).result.curve[-1].progress == 0.25
    third = study.ask()
    assert isinstance(third, Trial)
    for trial in (second, third):
        study.tell(trial.number, TOY.run([study.job(trial)], stay)[0])
    study.close()
    assert not any(t.pending for t in study.history)
    assert study.units(study.history.trials[first.number]) == 0.25


def stay(trial: int, point: Point) -> bool:
    return True


def test_plans_count_what_a_bill_allows():
    methods = (Method("random", Dirichlet(), 99), Method("few", Dirichlet(), 2))
    assert trainings(plan(*methods, bill=5.5))["random"] == 5
    assert trainings(plan(*methods, bill=5.5))["few"] == 2
    small = Method("small", Dirichlet(), 99, least=0.25)
    assert trainings(plan(small, bill=5.5))["small"] == 22


@pytest.mark.parametrize("bill", [0, -1, 0.5, math.inf, math.nan])
def test_a_bill_that_allows_nothing_is_refused(bill):
    with pytest.raises(ConfigError, match="bill must be a number of trainings, at least 1"):
        plan(bill=bill)
