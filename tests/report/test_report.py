"""The printed report, the facts behind it, and the figures."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raymix.core.errors import StudyError
from raymix.core.job import Point, Status, TrainResult
from raymix.core.mixture import Mixture
from raymix.core.trial import Idle, Role
from raymix.report.best import best_of
from raymix.report.facts import facts, repeats
from raymix.report.figures import write_figures
from raymix.report.table import report, status_table
from raymix.report.verdict import verdict
from raymix.search.dirichlet import Dirichlet
from raymix.search.grid import Grid
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.record import Record, read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.02)


def study(folder: Path, toy: Toy = TOY, **fields: object) -> Study:
    settings = {"objective": Objective(), "confirm": Confirm(2, 3), **fields}
    methods = (Method("random", Dirichlet(), 5), Method("grid", Grid(4), 5))
    return Study(folder, Plan(toy.space(), MultiTask(), methods=methods, **settings), {})


def finished(folder: Path, toy: Toy = TOY, **fields: object) -> Record:
    own = study(folder, toy, **fields)
    run_serial(own, toy)
    own.close()
    return read(folder)


def printed(renderable: object, width: int = 140) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(renderable)
    console.file.close()
    return console.export_text()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return finished(tmp_path_factory.mktemp("study"))


def test_repeats_are_the_confirmations_on_test(record):
    table = repeats(facts(record))
    assert table.split == "test"
    assert table.seeds == (1000, 1001, 1002)
    assert table.names[:2] == ("uniform", "proportional")
    assert (table.baselines["uniform"], table.baselines["proportional"]) == (0, 1)
    assert table.scores.shape == (4, 3)
    for trial in record.history:
        if trial.role is Role.CONFIRM:
            losses = [trial.result.metrics[f"test/{name}/loss"] for name in TOY.names]
            assert np.isclose(table.scores, np.mean(losses)).sum() == 1


def test_report_shows_everything(record):
    text = printed(report(record))
    for words in (
        "25 trials told",
        "untrained model",
        "Ranking of the search",
        "Confirmed with 3 fresh seeds",
        "Against the baselines (test losses",
        "degrees of freedom",
        "difference, 95%",
        "by domain",
        "GPU hours",
    ):
        assert words in text, words
    assert " ".join(text.split()).endswith(verdict(repeats(facts(record))).sentence)
    for trial in record.history.ranking():
        if trial.role is Role.BASELINE:
            assert trial.method in text


def test_report_of_the_toy_finds_what_is_there(record):
    said = verdict(repeats(facts(record)))
    worst = TOY.mean_loss(TOY.space().proportional())
    best = facts(record).winner
    own = next(
        c for c in said.comparisons if c.baseline == "proportional" and c.name in said.sentence
    )
    assert own.word == "better"
    assert own.low < TOY.mean_loss(best.mixture) - worst < own.high


def test_without_a_test_split_eval_decides_and_the_bias_is_said(tmp_path):
    blind = _WithoutTest()
    own = study(tmp_path)
    run_serial(own, blind)
    own.close()
    known = facts(read(tmp_path))
    assert repeats(known).split == "eval"
    text = " ".join(printed(report(read(tmp_path))).split())
    assert "Eval also guided the search" in text
    assert "(eval losses" in text


class _WithoutTest:
    """The toy for domains that have no test split."""

    def run(self, jobs, report):
        results = TOY.run(jobs, report)
        return [
            TrainResult(r.status, {k: v for k, v in r.metrics.items() if "test/" not in k})
            for r in results
        ]


def test_one_domain_without_test_makes_it_eval(tmp_path):
    class Half(_WithoutTest):
        def run(self, jobs, report):
            results = TOY.run(jobs, report)
            kept = lambda r: {k: v for k, v in r.metrics.items() if k != "test/chat/loss"}  # noqa: E731
            return [TrainResult(r.status, kept(r)) for r in results]

    own = study(tmp_path)
    run_serial(own, Half())
    own.close()
    assert repeats(facts(read(tmp_path))).split == "eval"


@pytest.mark.parametrize("confirm", [Confirm(2, 1), Confirm(0, 0)])
def test_too_few_seeds_tell_nothing(tmp_path, confirm):
    text = " ".join(printed(report(finished(tmp_path, confirm=confirm))).split())
    assert "Cannot tell:" in text


def test_objective_and_guards_are_shown(tmp_path):
    goal = Objective("worst", constraints=("eval/code/loss <= 0.7",), kl_to_prior=0.01)
    record = finished(tmp_path, objective=goal)
    text = printed(report(record), 200)
    assert "objective: worst eval loss" in text
    assert "eval/code/loss <= 0.7" in text
    assert "guard broken by" in text
    known = facts(record)
    trial = known.history.ranking()[0]
    plain = max(trial.result.metrics[f"eval/{name}/loss"] for name in TOY.names)
    assert known.score(trial.result.metrics, "eval", trial.mixture) == plain
    assert trial.score > plain, "the pull to the prior is in the score, not in the verdict"


def test_failed_and_stopped_trials_are_mentioned(tmp_path):
    own = study(tmp_path)
    _answer(own, own.ask().number)
    while own.ask() is not Idle.WAIT:
        pass
    for trial in own.history:
        if trial.pending and trial.number != 5:
            _answer(own, trial.number)
    own.started(5)
    own.reported(5, Point(2, 0.5, {f"eval/{name}/loss": 1.5 for name in TOY.names}))
    own.close()
    record = read(tmp_path)
    text = printed(report(record))
    assert "1 failed, 1 open" in text
    assert "stopped at 50%" in text
    status = " ".join(printed(status_table(record)).split())
    assert "open: random-005, attempt 1, step 2, 50% of its budget, eval mean 1.500" in status
    assert "best so far" in status


def _answer(own: Study, number: int) -> None:
    job = own.job(own.history.trials[number])
    if number == 4:
        own.tell(number, TrainResult(Status.FAILED, {}, error="NaN"))
    elif number == 6:
        own.tell(number, TOY.run([job], lambda trial, point: point.progress < 0.5)[0])
    else:
        own.tell(number, TOY.run([job], lambda *_: True)[0])


def test_a_study_that_has_just_begun(tmp_path):
    own = study(tmp_path)
    own.ask()
    own.close()
    text = printed(report(read(tmp_path)))
    assert "0 trials told, 1 open" in text
    assert "Cannot tell" in text
    assert "open: base-000" in printed(status_table(read(tmp_path)))
    with pytest.raises(StudyError, match="nothing to draw yet"):
        write_figures(read(tmp_path), tmp_path)
    assert best_of(facts(read(tmp_path))) is None


def test_a_study_in_the_middle_of_its_first_block_is_told_about(record, tmp_path):
    first = next(t.number for t in record.history if t.role is Role.CONFIRM)
    for told in (first + 1, first + 2):
        trials = {n: t for n, t in record.trials.items() if n < told}
        half = copy.copy(record)
        half.trials = trials
        assert repeats(facts(half)) is None, "the best of the search is not among them yet"
        assert "Confirmed with 1 fresh seeds" in printed(report(half))
        write_figures(half, tmp_path)


def test_best_of_is_the_winner_with_the_means_of_its_seeds(record):
    best = best_of(facts(record))
    winner = facts(record).winner
    assert best.mixture == winner.mixture
    assert best.seeds == (1000, 1001, 1002)
    confirms = [t for t in record.history if t.role is Role.CONFIRM]
    own = [t for t in confirms if t.proposal.note["of"] == winner.number]
    mean = np.mean([t.result.metrics["test/chat/loss"] for t in own])
    assert best.losses["test"]["chat"] == pytest.approx(mean)
    assert best.objective["eval"] == pytest.approx(np.mean([t.score for t in own]))
    assert best.realised == winner.result.realised
    assert best.fingerprint == record.header["fingerprint"]


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_any_number_of_domains_prints_and_draws(tmp_path, size):
    names = tuple(f"domain-{i}" for i in range(size))
    transfer = tuple(tuple(4.0 * (i == j) + 0.3 for j in range(size)) for i in range(size))
    sizes = tuple(range(900, 900 + 100 * size, 100))
    toy = Toy(names, (0.5,) * size, (1.0,) * size, transfer, sizes, noise=0.02)
    methods = (Method("random", Dirichlet(), 3),)
    plan = Plan(toy.space(), MultiTask(), Objective(), methods, confirm=Confirm(1, 2))
    own = Study(tmp_path, plan, {})
    run_serial(own, toy)
    own.close()
    text = printed(report(read(tmp_path)), 200)
    assert ("and 8 more" in text) == (size == 12)
    for path in write_figures(read(tmp_path), tmp_path / "figures"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_figures_are_written_without_a_display(record, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    losses, ranking = write_figures(record, tmp_path)
    assert (losses.name, ranking.name) == ("losses.png", "ranking.png")
    for path in (losses, ranking):
        width, height = (
            int.from_bytes(path.read_bytes()[start : start + 4], "big") for start in (16, 20)
        )
        assert width > 900
        assert height > 300


def test_score_is_nan_where_a_split_is_missing(record):
    known = facts(record)
    trial = known.history.trials[3]
    assert math.isnan(known.score(trial.result.metrics, "test", trial.mixture))
    assert json.dumps(record.header["identity"])
    assert isinstance(trial.mixture, Mixture)
