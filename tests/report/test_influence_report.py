"""Influence in the report: predicted against realised, doubts in words, the figure."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from influence_told import TOY, Checked, follow
from rich.console import Console

from raymix.core.influence import Influence, Thresholds
from raymix.core.job import Point
from raymix.core.trial import Proposal, Trial
from raymix.report.facts import facts
from raymix.report.influence import agreement, told, trust_of
from raymix.report.measured import aggregated, layer_parts, measured_tables
from raymix.report.scatter import write_influence
from raymix.report.table import report, status_table
from raymix.report.trust import doubts, one_sign, short
from raymix.report.write import write_report
from raymix.search.dirichlet import Dirichlet
from raymix.search.ideal import Ideal
from raymix.study.record import read
from raymix.study.study import Study
from raymix.testing.toy import Toy

MIXTURE = TOY.space().prior


def printed(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    follow(folder)
    return read(folder)


@pytest.fixture(scope="module")
def measured():
    return Checked().influence(TOY.influence(MIXTURE))


# ---- predicted against realised ----


def test_each_step_stands_with_what_was_foretold_and_what_came(record):
    (each,) = told(facts(record), record)
    assert each.method == "ideal"
    assert each.fixed
    first, *_ = each.steps
    trial = record.trials[first.trial.number]
    assert first.parent == 3
    assert first.number == 1
    assert first.size == 0.5
    before, after = (record.trials[n].result.metrics for n in (3, trial.number))
    for name, change in zip(first.domains, first.realised, strict=True):
        assert change == pytest.approx(after[f"eval/{name}/loss"] - before[f"eval/{name}/loss"])
    assert first.objective[1] == pytest.approx(trial.score - record.trials[3].score)
    assert first.right == (first.objective[0] < 0)
    assert each.agreement.points == 3 * len(each.steps)


def test_the_table_has_a_row_for_each_step(record):
    text = printed(report(record))
    assert "ideal: change of the objective, predicted by influence and realised" in text
    (each,) = told(facts(record), record)
    for step in each.steps:
        predicted, found = step.objective
        assert f"{step.size:+.3g} {predicted:+.4f} {found:+.4f}" in text
    assert str(each.agreement) in text
    assert "does the influence agree with itself?" in text
    assert "consistent" in text


def test_a_study_without_influence_has_no_such_section(tmp_path):
    follow(tmp_path, searcher=Dirichlet())
    record = read(tmp_path)
    assert told(facts(record), record) == ()
    assert "influence" not in printed(report(record))
    assert write_influence(record, tmp_path / "figures") == ()
    assert {path.name for path in write_report(record, tmp_path)} == {
        "best_mixture.yaml",
        "losses.png",
        "ranking.png",
    }


def test_what_was_held_against_a_round_is_said(tmp_path):
    # Noise far above the effects: some round is worse than its parent.
    runner = Checked(Toy(noise=1.0))
    follow(tmp_path, runner, Ideal(rounds=4, trust_region=True))
    record = read(tmp_path)
    notes = [t.proposal.note for t in record.history if t.method == "ideal"]
    reasons = {n["verdict"]["reason"] for n in notes if n.get("verdict", {}).get("reason")}
    assert reasons
    text = printed(report(record))
    for reason in reasons:
        assert reason in text


def test_agreement_by_hand():
    predicted = np.array([-4.0, -2.0, 1.0, 3.0, np.nan])
    found = agreement(predicted, 0.1 * predicted)
    assert (found.points, found.signs) == (4, 4)
    assert found.scale == pytest.approx(0.1)
    assert (found.spearman, found.pearson) == (pytest.approx(1), pytest.approx(1))
    # Ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8) = .5.
    assert agreement(np.array([1.0, 2, 3]), np.array([1.0, 9, 4])).spearman == pytest.approx(0.5)
    few = agreement(np.array([1.0, 2]), np.array([1.0, 2]))
    assert math.isnan(few.spearman)
    assert math.isnan(agreement(np.zeros(0), np.zeros(0)).scale)


# ---- doubts ----


def test_nothing_speaks_against_a_consistent_influence(measured):
    assert doubts(measured, MIXTURE, Thresholds()) == ()


def test_a_broken_threshold_is_named_with_value_and_reason(measured):
    shaken = Checked(wrong=1.0, epochs=12.0).influence(TOY.influence(MIXTURE))
    said = doubts(shaken, MIXTURE, Thresholds())
    assert said[0] == (
        "the estimates at damping 0.01 and 1 correlate at -1.00 only (influence.trust.damping: .95)"
    )
    assert "likely reason: rows were seen many times (math 12 times" in said[1]
    # In the toy more of every domain helps.
    assert one_sign(shaken) == pytest.approx(-1)
    assert "far from convergence" in said[2]
    assert not any("train_rows" in sentence for sentence in said)
    assert doubts(shaken, MIXTURE, Thresholds(damping=-1.0)) == ()


def test_more_rows_are_advised_where_halves_disagree_for_no_other_reason(measured):
    matrix = np.array(measured.estimates["ekfac"])
    other = tuple(map(tuple, (-matrix).tolist()))
    # Signs of both kinds: not far from convergence.
    mixed = tuple(tuple(row) for row in (matrix * [1, -1, 1]).tolist())
    shaken = replace(
        measured,
        halves=(measured.estimates["ekfac"], other),
        estimates={**measured.estimates, "ekfac": mixed, "identity": mixed},
    )
    said = doubts(shaken, MIXTURE, Thresholds())
    assert "two halves of the data correlate at -1.00" in said[0]
    assert "too few rows (64 of a domain)" in said[1]


def test_repetition_and_training_from_scratch_are_doubts_on_their_own(measured):
    often = replace(measured, epochs=(40.0, 2.0, 3.0))
    (said,) = doubts(often, MIXTURE, Thresholds())
    assert "math 40 times; influence.trust.epochs: 20" in said
    (far,) = doubts(replace(measured, moved=0.7), MIXTURE, Thresholds())
    assert "moved the weights by 70% of their norm" in far
    assert doubts(often, MIXTURE, Thresholds(epochs=50.0)) == ()


def test_the_workers_own_words_are_kept(measured):
    noted = replace(measured, notes=("64 rows are fewer than layer x needs",))
    assert doubts(noted, MIXTURE, Thresholds()) == noted.notes


def test_unknown_correlations_are_no_doubts():
    bare = Influence(("a", "b"), (0.5, 0.5), (1.0, 1.0), {"ekfac": ((0.0, 0.0), (0.0, 0.0))})
    mixture = TOY.space().prior.normalised(("a", "b"), (1, 1))
    assert doubts(bare, mixture, Thresholds()) == ()


@pytest.mark.parametrize(
    ("value", "said"), [(0.974, ".97"), (-0.3, "-.30"), (0.999, "1.00"), (math.nan, "–")]
)
def test_correlations_are_written_short(value, said):
    assert short(value) == said


def test_doubts_of_a_study_name_their_trials_and_follow_its_settings(tmp_path):
    config = {"influence": {"trust": {"epochs": 5.0}}}
    follow(tmp_path, Checked(epochs=6.0), config=config)
    record = read(tmp_path)
    assert trust_of(record) == Thresholds(epochs=5.0)
    (each,) = told(facts(record), record)
    (said,) = each.doubts(trust_of(record)).items()
    assert "math 6 times, code 6 times, chat 6 times; influence.trust.epochs: 5" in said[0]
    assert said[1] == "all"
    text = printed(report(record))
    assert "doubtful" in text
    assert "all: rows were seen many times" in text


def test_under_a_free_total_influences_are_not_centred(tmp_path):
    searchers = [{"type": "ideal", "settings": {"mode": "paper"}}]
    follow(tmp_path, searcher=Ideal(mode="paper"), config={"search": {"searchers": searchers}})
    record = read(tmp_path)
    (each,) = told(facts(record), record)
    assert not each.fixed
    assert "realised" in printed(report(record))


# ---- one measurement ----


def test_a_measurement_is_readable(record):
    (each,) = told(facts(record), record)
    trial, influence = each.influences[0]
    text = printed(measured_tables(trial, influence))
    assert "Influence at ideal-003 (EK-FAC): change of eval loss, 10% more of" in text
    assert "measured in 1.75 s on 192 training rows: covariances 1.5 s (0.7 passes)" in text
    whole = aggregated(trial, influence, fixed=True)
    assert whole.sum() == pytest.approx(0)
    row = " ".join(f"{value:+.2g}" for value in 0.1 * whole)
    assert f"objective {row}" in text
    assert layer_parts(trial, influence, True) == {
        "model.layers.0.mlp.up_proj": pytest.approx(0.25),
        "model.layers.1.mlp.up_proj": pytest.approx(0.75),
    }
    assert "model.layers.1.mlp.up_proj +75% model.layers.0.mlp.up_proj +25%" in text


def test_with_many_domains_the_matrix_is_left_to_the_figure():
    names = tuple(f"domain-{i}" for i in range(12))
    toy = Toy(names, (0.5,) * 12, (1.0,) * 12, tuple(map(tuple, np.eye(12) + 0.1)), (100,) * 12)
    mixture = toy.space().uniform()
    trial = Trial(3, "ideal", Proposal(mixture), 0)
    text = printed(measured_tables(trial, Checked(toy).influence(toy.influence(mixture))))
    assert "change of eval loss" not in text
    assert "domain-11" in text


# ---- figure and status ----


@pytest.mark.parametrize("size", [2, 5, 13])
def test_the_figure_is_drawn_for_any_number_of_domains(tmp_path, size):
    names = tuple(f"domain-{i}" for i in range(size))
    transfer = tuple(tuple(4.0 * (i == j) + 0.3 for j in range(size)) for i in range(size))
    sizes = tuple(range(900, 900 + 100 * size, 100))
    toy = Toy(names, (0.5,) * size, (1.0,) * size, transfer, sizes, noise=0.02)
    follow(tmp_path, Checked(toy, epochs=30.0))
    record = read(tmp_path)
    (path,) = write_influence(record, tmp_path / "figures")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path in write_report(record, tmp_path)


def test_status_says_how_far_a_measurement_is(tmp_path):
    own = follow(tmp_path)
    plan = replace(own.plan, methods=(replace(own.plan.methods[0], name="again"),))
    again = Study(tmp_path, plan, {}, resume=True)
    trial = again.ask()
    again.started(trial.number)
    metrics = {f"eval/{name}/loss": 1.0 for name in TOY.names}
    again.reported(trial.number, Point(4, 1.0, {**metrics, "influence/progress": 0.4}))
    again.close()
    assert "influence measured to 40%" in printed(status_table(read(tmp_path)))
