"""What reports say of guards and of parameters."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from raymix.core.job import Status, TrainResult
from raymix.core.mixture import Parameter
from raymix.core.trial import Proposal, Trial
from raymix.report.best import best_of
from raymix.report.facts import facts, repeats
from raymix.report.guards import standings
from raymix.report.table import guard_table, ranking, report
from raymix.report.verdict import verdict
from raymix.search.dirichlet import Dirichlet
from raymix.search.fixed import Fixed
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.forgetful import forgetful, guarded_optimum
from raymix.testing.toy import Toy
from raymix.track.live import LiveTable

TOY = forgetful(noise=0.002)
CONFIRM = Confirm(1, 3)
KEEP = Objective(keep={"chat": 0.1})


@dataclass(frozen=True)
class Same:
    """A strategy with a parameter that changes nothing."""

    k: float = 1 / 256

    def stages(self, mixture, budget, params):
        return MultiTask().stages(mixture, budget, {})


def text(renderable: object, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def studied(folder, objective: Objective = KEEP, confirm: Confirm = CONFIRM):
    # Half of the margin is left, and none at all.
    mixtures = (guarded_optimum(TOY, 0.05), guarded_optimum(TOY, 0.3))
    methods = (Method("given", Fixed(mixtures), 2),)
    study = Study(folder, Plan(TOY.space(), MultiTask(), objective, methods, confirm=confirm), {})
    run_serial(study, TOY)
    study.close()
    return read(folder)


def trial(chat: float, test: float | None = None) -> Trial:
    found = {"eval/math/loss": 1.0, "eval/chat/loss": chat}
    found |= {} if test is None else {"test/chat/loss": test}
    return Trial(1, "a", Proposal(TOY.space().prior), 0, TrainResult(Status.DONE, found), 1.0, 0.0)


def test_standings_by_hand():
    base = {"eval/chat/loss": 1.0, "test/chat/loss": 1.2}
    (found,) = standings(KEEP, base, [trial(1.05, 1.35), trial(1.07, 1.37)])
    assert found.name == "chat within 0.1 of base"
    assert found.over == pytest.approx(-0.04)
    assert found.spread == pytest.approx(0.02 / 2**0.5)
    assert found.test == pytest.approx(0.06)
    assert found.seeds == "±0.0141"
    (mixed,) = standings(KEEP, base, [trial(1.0), trial(1.11), trial(1.05)])
    assert mixed.holds
    assert mixed.seeds == "±0.0551, 1 of 3 above"
    assert (found.words, found.test_words) == ("holds by 0.04", "broken by 0.06")
    (alone,) = standings(KEEP, base, [trial(1.3)])
    assert (alone.words, alone.test_words, alone.holds) == ("broken by 0.2", "", False)
    (relative,) = standings(Objective(keep={"chat": "10%"}), base, [trial(1.08)])
    assert relative.name == "chat within 10% of base"
    assert relative.words == "holds by 0.02"
    (unknown,) = standings(KEEP, {}, [trial(1.08)])
    assert unknown.words == "unknown"
    assert standings(Objective(), base, [trial(1.0)]) == ()


def test_the_report_says_whether_guards_hold(tmp_path):
    record = studied(tmp_path)
    known = facts(record)
    told = text(report(record))
    assert "+ 10 for each nat beyond a margin; chat within 0.1 of base" in told
    assert "guard broken by 0.2" in told
    # A row for each that was confirmed: both baselines and the winner.
    rows = [x for x in text(guard_table(known, known.winner)).splitlines() if "within" in x]
    assert len(rows) == 3
    (won,) = [line for line in rows if line.lstrip().startswith("given")]
    assert "holds by 0.05" in won or "holds by 0.04" in won
    said = verdict(repeats(known)).sentence
    assert f"Guards of {repeats(known).names[repeats(known).best]}, on eval: chat within" in said
    assert "holds by" in said
    assert "(test: holds by" in said
    assert best_of(known).objective["keep"] == {"chat": 0.1}


def test_without_guards_nothing_is_said_of_them(tmp_path):
    record = studied(tmp_path, Objective())
    told = text(report(record))
    assert "Guards" not in told
    assert "margin" not in told


def test_without_confirmations_the_winners_guards_are_told(tmp_path):
    known = facts(studied(tmp_path, confirm=Confirm(0, 0)))
    (row,) = [x for x in text(guard_table(known, known.winner)).splitlines() if "within" in x]
    assert "holds by" in row


def test_tables_show_parameters(tmp_path):
    toy = Toy()
    params = (Parameter("k", 1 / 256, values=(1 / 64, 0.5)),)
    methods = (Method("m", Dirichlet(), 4, params=params),)
    plan = Plan(toy.space(), Same(), Objective(), methods, confirm=Confirm(0, 0))
    study = Study(tmp_path, plan, {})
    console = Console(width=200, record=True, file=io.StringIO())
    live = LiveTable(4, console)
    while isinstance(asked := study.ask(), Trial):
        (result,) = toy.run([study.job(asked)], lambda *_: True)
        live.trial_ended(study.tell(asked.number, result))
    study.close()
    settings = {t.proposal.params["k"] for t in study.history if t.method == "m"}
    known = facts(read(tmp_path))
    told = text(ranking(known))
    for number, words in ((1 / 256, " k .0039"), (0.5, " k .5")):
        assert (number in settings) == (words in told)
    assert " k ." in text(live.table())
    assert " k ." in console.export_text()
