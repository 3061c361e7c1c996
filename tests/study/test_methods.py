"""Whole methods compared: many seeds of each, and what each chose trained again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from raymix.core.codec import encode, to_spec
from raymix.core.errors import ConfigError
from raymix.core.job import Report, Status, TrainJob, TrainResult
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.report.best import best_of
from raymix.report.facts import facts, repeats
from raymix.report.verdict import verdict
from raymix.reweight.mos import MoS
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed
from raymix.search.ideal import Ideal
from raymix.search.online import Online
from raymix.strategy.multitask import MultiTask
from raymix.study.confirm import by_group, champion, confirmed, winner
from raymix.study.groups import Member, chosen, runs_of
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, seeded, trainings
from raymix.study.record import equal_histories, read
from raymix.study.serial import run_serial
from raymix.study.store import FILE
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)
METHODS = Confirm(0, 3, "methods")


def plan(*methods: Method, confirm: Confirm = METHODS, toy: Toy = TOY, **fields: object) -> Plan:
    return Plan(toy.space(), MultiTask(), Objective(), methods, confirm=confirm, seed=5, **fields)


def finished(folder: Path, the_plan: Plan, runner: object = TOY, resume: bool = False) -> History:
    study = Study(folder, the_plan, {}, resume=resume)
    try:
        run_serial(study, runner)
        return study.history
    finally:
        study.close()


def own(history: History, method: str) -> list[Trial]:
    return [t for t in history if t.method == method]


def confirms(history: History) -> list[Trial]:
    return [t for t in history if t.role is Role.CONFIRM]


RANDOM = seeded(Method("random", Dirichlet(), 4), 3)


# ---- seeds ----


def test_a_method_with_seeds_is_several_methods_of_one_group():
    assert [(m.name, m.group, m.repeat) for m in RANDOM] == [
        ("random#0", "random", 0),
        ("random#1", "random", 1),
        ("random#2", "random", 2),
    ]
    assert seeded(Method("one", Dirichlet(), 4), 1) == (Method("one", Dirichlet(), 4),)
    with pytest.raises(ConfigError, match="seeds of 'one' must be at least 1, got 0"):
        seeded(Method("one", Dirichlet(), 4), 0)


def test_each_runs_by_itself_with_its_own_seed(tmp_path):
    history = finished(tmp_path, plan(*RANDOM, Method("ideal", Ideal(repeats=2, rounds=1), 9)))
    for repeat, method in enumerate(RANDOM):
        assert {t.seed for t in own(history, method.name)} == {5 + repeat}
        assert len(own(history, method.name)) == 4
    # A searcher's own repeats come on top.
    assert [t.seed for t in own(history, "ideal")] == [5, 6, 5, 6]
    draws = {t.mixture.weights for method in RANDOM for t in own(history, method.name)}
    assert len(draws) == 12
    assert {t.seed for t in history if t.role is Role.BASELINE} == {5}


def test_reports_find_the_groups_in_the_file(tmp_path):
    finished(tmp_path, plan(*RANDOM[:2], Method("alone", Dirichlet(), 1)))
    record = read(tmp_path)
    assert record.members == {
        "random#0": Member("random", 0),
        "random#1": Member("random", 1),
        "alone": Member("alone", 0),
    }
    assert runs_of(record.members) == {"random": ("random#0", "random#1"), "alone": ("alone",)}
    assert record.header["methods"] == {"random#0": 4, "random#1": 4, "alone": 1}
    assert record.confirm == METHODS


def test_a_study_written_before_there_were_groups_is_resumed(tmp_path):
    asked = plan(Method("random", Dirichlet(), 2), confirm=Confirm(1, 1))
    whole = finished(tmp_path / "new", asked)
    lines = (tmp_path / "new" / FILE).read_text().splitlines(keepends=True)
    head = lines[0].replace('"members":{"random":{"group":"random","repeat":0}},', "")
    head = head.replace(f'"confirm":{encode_confirm(asked.confirm)},', "")
    assert len(head) < len(lines[0]) - 100
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / FILE).write_text("".join([head, *lines[1:7]]))
    old = read(tmp_path / "old")
    assert old.members == {"random": Member("random")}
    assert old.confirm == Confirm()
    assert equal_histories(finished(tmp_path / "old", asked, resume=True), whole)


def encode_confirm(confirm: Confirm) -> str:
    import json

    return json.dumps(encode(confirm), separators=(",", ":"))


@pytest.mark.parametrize(
    ("methods", "baselines"),
    [
        ((*RANDOM, Method("random", Dirichlet(), 1)), ()),
        ((*RANDOM, *RANDOM), ()),
        (RANDOM, ("random",)),
    ],
)
def test_a_groups_name_is_its_own(methods, baselines):
    mine = {name: Mixture.of({"math": 1.0}) for name in baselines}
    with pytest.raises(ConfigError, match="'random' is used twice"):
        plan(*methods, baselines=mine)


# ---- what a method chose ----


@dataclass(frozen=True)
class Finals:
    """Searches once, then makes two final trainings, each of a mixture of its own."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        if len(history.own) == 3:
            return Idle.DONE
        shares = rng.dirichlet(np.ones(3))
        role = Role.FINAL if history.own else Role.SEARCH
        return Proposal(space.project(shares), role=role)


def test_a_method_chose_its_latest_final_or_its_best(tmp_path):
    history = finished(tmp_path, plan(Method("finals", Finals(), 9), *RANDOM[:1]))
    assert chosen(history, "finals") == own(history, "finals")[2]
    best = min(own(history, "random#0"), key=lambda t: t.score)
    assert chosen(history, "random#0") == best
    assert chosen(history, "nobody") is None
    last = own(history, "finals")[2]
    lost = replace(last, result=TrainResult(Status.FAILED, {}), score=math.nan)
    trials = tuple(lost if t == last else t for t in history)
    assert chosen(History(trials), "finals") == own(history, "finals")[1]


def test_block_b_trains_what_run_b_of_each_group_chose(tmp_path):
    two = seeded(Method("finals", Finals(), 3), 2)
    asked = plan(*RANDOM, *two, confirm=replace(METHODS, seeds=4))
    history = finished(tmp_path, asked)
    rows = ("uniform", "proportional", "random", "finals")
    assert [(t.proposal.note["group"], t.proposal.note["block"]) for t in confirms(history)] == [
        (group, block) for block in range(4) for group in rows
    ]
    assert trainings(asked)["confirmations"] == len(confirms(history)) == 16
    for trial in confirms(history):
        note = trial.proposal.note
        assert trial.seed == 1005 + note["block"]
        source = history.trials[note["of"]]
        runs = {"random": 3, "finals": 2}.get(note["group"])
        name = f"{note['group']}#{note['block'] % runs}" if runs else note["group"]
        assert source == chosen(history, name) or source.role is Role.BASELINE
        assert source.method == name
        assert trial.mixture == source.mixture


def test_the_verdicts_rows_are_groups(tmp_path):
    history = finished(tmp_path, plan(*RANDOM, Method("best", Fixed((TOY.optimum(),)), 1)))
    known = facts(read(tmp_path))
    table = repeats(known)
    assert table.names == ("uniform", "proportional", "random", "best")
    assert table.seeds == (1005, 1006, 1007)
    assert table.baselines == {"uniform": 0, "proportional": 1}
    assert table.names[table.best] == champion(history, known.members) == "best"
    for row, group in enumerate(table.names):
        for column in range(3):
            (trial,) = (
                t for t in confirms(history)
                if (t.proposal.note["group"], t.proposal.note["block"]) == (group, column)
            )  # fmt: skip
            losses = [trial.result.metrics[f"test/{name}/loss"] for name in TOY.names]
            assert table.scores[row, column] == pytest.approx(np.mean(losses))
    assert "best is better than proportional" in verdict(table).sentence
    assert best_of(known).mixture == winner(history, METHODS, known.members).mixture


def test_the_mixture_handed_out_is_that_of_the_run_that_did_best(tmp_path):
    more = seeded(Method("random", Dirichlet(), 12), 3)
    history = finished(tmp_path, plan(*more, confirm=replace(METHODS, seeds=6)))
    known = facts(read(tmp_path))
    assert champion(history, known.members) == "random"
    told = by_group(history)
    level = [
        np.mean([told[base][b].score for base in ("uniform", "proportional")]) for b in range(6)
    ]
    means = {
        n: np.mean([t.score - level[t.proposal.note["block"]] for t in ts])
        for n, ts in confirmed(history, METHODS).items()
    }
    runs = [chosen(history, method.name).number for method in RANDOM]
    best = min(runs, key=means.__getitem__)
    assert known.winner.number == best
    found = best_of(known)
    assert found.mixture == known.winner.mixture
    # One run's mixture, but what the method is worth: the best of its runs would be flattered.
    assert found.seeds == tuple(range(1005, 1011))
    scores = [told["random"][block].score for block in range(6)]
    assert found.objective["eval"] == pytest.approx(np.mean(scores))
    losses = [told["random"][b].result.metrics["test/math/loss"] for b in range(6)]
    assert found.losses["test"]["math"] == pytest.approx(np.mean(losses))


def test_a_method_that_chose_nothing_is_missing_and_said(tmp_path):
    @dataclass
    class Failing:
        def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
            if jobs[0].trial in lost:
                return [TrainResult(Status.FAILED, {}, error="NaN")]
            return TOY.run(jobs, report)

    asked = plan(*RANDOM, Method("bad", Dirichlet(), 1), Method("best", Fixed((TOY.optimum(),)), 1))
    lost = {
        t.number for t in finished(tmp_path / "whole", asked) if t.method in ("bad", "random#1")
    }
    history = finished(tmp_path / "lost", asked, Failing())
    assert by_group(history).keys() == {"uniform", "proportional", "random", "best"}
    assert list(by_group(history)["random"]) == [0, 2]
    table = repeats(facts(read(tmp_path / "lost")))
    assert table.missing == ("random#1, bad chose nothing",)
    assert np.isnan(table.scores).sum() == 1
    said = verdict(table).sentence
    assert said.endswith("Missing: random#1, bad chose nothing.")
    # Only blocks that all have decide; that is enough.
    assert champion(history, asked.members) == "best"


# ---- what is trained again ----


@dataclass
class Hearing:
    """The toy, remembering its jobs."""

    toy: Toy = TOY
    jobs: list[TrainJob] = field(default_factory=list)

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        self.jobs += jobs
        return self.toy.run(jobs, report)


def test_a_method_inside_the_training_works_in_the_confirmation_too(tmp_path):
    mos = to_spec(MoS())
    runner = Hearing()
    history = finished(tmp_path, plan(*seeded(Method("mos", Online(mos), 1), 3)), runner)
    jobs = {job.trial: job for job in runner.jobs}
    again = [t for t in confirms(history) if t.proposal.note["group"] == "mos"]
    assert len(again) == 3
    for trial in again:
        assert jobs[trial.number].stages[0].reweighter == mos
        assert jobs[trial.number].test
        assert not trial.proposal.measure


@dataclass(frozen=True)
class Larger:
    """One final training of twice the study's budget, on fewer rows, with a reweighter."""

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        if history.own:
            return Idle.DONE
        mixture = Mixture(space.names, (0.3, 0.3, 0.4))
        budget = Budget(2 * space.budget.amount)
        return Proposal(
            mixture, budget, (500, 900, 900), reweighter=to_spec(MoS()), role=Role.FINAL
        )


@pytest.mark.parametrize(("equal", "amount"), [(None, 1000), (True, 1000), (False, 2000)])
def test_methods_are_compared_at_equal_size(tmp_path, equal, amount):
    asked = plan(Method("larger", Larger(), 1), confirm=replace(METHODS, equal_size=equal))
    runner = Hearing()
    history = finished(tmp_path, asked, runner)
    jobs = {job.trial: job for job in runner.jobs}
    trial = next(t for t in confirms(history) if t.proposal.note["group"] == "larger")
    (stage,) = jobs[trial.number].stages
    assert stage.budget.amount == amount
    assert stage.reweighter is None, "a final training is plain"
    assert stage.pools == ((500, 900, 900) if amount == 2000 else None)
    assert trial.mixture.weights == pytest.approx((0.3, 0.3, 0.4))


def test_a_larger_mixture_is_projected_into_the_studys_space(tmp_path):
    # One epoch of math is .6 of 1000 rows, but .15 of the study's 4000.
    toy = Toy(sizes=(600, 3000, 6000))
    space = toy.space(4000, max_epochs=1.0)

    @dataclass(frozen=True)
    class Smaller:
        def propose(
            self, space: Space, history: History, rng: np.random.Generator
        ) -> Proposal | Idle:
            mixture = Mixture(space.names, (0.3, 0.3, 0.4))
            return Idle.DONE if history.own else Proposal(mixture, Budget(1000))

    asked = replace(plan(Method("smaller", Smaller(), 1), standard=False), space=space)
    history = finished(tmp_path, asked, toy)
    trial = next(t for t in confirms(history) if t.proposal.note["group"] == "smaller")
    assert trial.proposal.budget is None
    assert trial.mixture.weights == pytest.approx(space.project([0.3, 0.3, 0.4]).weights)
    assert trial.mixture.weights[0] == pytest.approx(0.15)
    found = best_of(facts(read(tmp_path)))
    assert found.trial == "smaller-001"
    assert (found.mixture, found.budget) == (trial.mixture, Budget(4000))


def test_confirmed_models_are_kept_where_that_is_asked(tmp_path):
    for confirm in (replace(METHODS, seeds=1, save=True), Confirm(1, 1, save=True), Confirm(1, 1)):
        runner = Hearing()
        folder = tmp_path / f"{confirm.of}-{confirm.save}"
        history = finished(folder, plan(*RANDOM[:1], confirm=confirm), runner)
        saved = {job.trial: job.save for job in runner.jobs if job.save}
        if not confirm.save:
            assert saved == {}
            continue
        names = [Path(path).name for path in saved.values()]
        assert list(saved) == [t.number for t in confirms(history)]
        best = winner(history) if confirm.of == "best" else None
        other = chosen(history, "random#0").number
        label = "random" if best is None else f"random#0-{other:03d}"
        assert names == ["uniform-0", "proportional-0", f"{label}-0"]
        assert {Path(path).parent for path in saved.values()} == {folder.resolve() / "models"}


# ---- resuming ----


def test_resumed_after_every_event_it_is_the_same_study(tmp_path):
    asked = plan(*RANDOM[:2], Method("finals", Finals(), 3), confirm=replace(METHODS, seeds=2))
    whole = finished(tmp_path / "whole", asked)
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines) + 1, 9):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:cut]))
        assert equal_histories(finished(folder, asked, resume=True), whole), cut
        known = facts(read(folder))
        assert known.winner == winner(whole, METHODS, asked.members)


def test_what_is_chosen_anew_is_confirmed_anew(tmp_path):
    few = plan(*seeded(Method("random", Dirichlet(), 1), 2), confirm=replace(METHODS, seeds=2))
    first = finished(tmp_path, few)
    more = plan(*seeded(Method("random", Dirichlet(), 9), 2), confirm=replace(METHODS, seeds=2))
    second = finished(tmp_path, more, resume=True)
    again = second.trials[len(first) :]
    chose = {chosen(second, f"random#{n}").number for n in range(2)}
    assert {t.proposal.note["of"] for t in again if t.role is Role.CONFIRM} == chose - {
        chosen(first, f"random#{n}").number for n in range(2)
    }
    assert {t.proposal.note["of"] for t in by_group(second)["random"].values()} == chose


def test_until_a_block_is_whole_nobody_has_won(tmp_path):
    asked = plan(*RANDOM[:2])
    whole = finished(tmp_path / "whole", asked)
    first = next(i for i, t in enumerate(whole) if t.role is Role.CONFIRM)
    for count in range(first, first + 3):
        history = History(whole.trials[:count])
        assert champion(history, asked.members) is None
        assert winner(history, METHODS, asked.members) == history.ranking()[0]
    assert champion(History(whole.trials[: first + 3]), asked.members) is not None


def test_what_cannot_be_confirmed_is_refused():
    with pytest.raises(ConfigError, match=r"confirm\.of must be best or methods, got 'all'"):
        Confirm(of="all")
