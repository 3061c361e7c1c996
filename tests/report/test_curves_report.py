"""What is said of scaling curves, of trainings whose laws are known."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.report.curve_figures import alone_figure, pairs_figure, plain, together_figure
from raymix.report.curve_tables import curves_report, interval
from raymix.report.curve_words import part, sentences
from raymix.report.curves import Scaling, Taken
from raymix.report.law import Estimate, Law

NAMES, ROWS = ("grows", "done", "flat"), (2000, 2000, 400)
FRACTIONS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
LAWS = {
    "grows": Law(2.5, 0.1, 3000.0, 0.8),
    "done": Law(2.5, 0.3, 20.0, 2.0),
    "flat": Law(2.5, 2.5, 10.0, 1.0),
}
MIXED = {"grows": -0.3, "done": 0.2, "flat": 0.0}
"""What mixing adds to the loss, at the two largest fractions."""


def space():
    domains = tuple(Domain(n, r, r, r) for n, r in zip(NAMES, ROWS, strict=True))
    free = ((0.0,) * 3, (1.0,) * 3, (np.inf,) * 3)
    return Space(domains, Budget(100), Mixture.normalised(NAMES, ROWS), *free)


def loss(name, rows, model, rng):
    """By its law; the larger model's falls three quarters faster below the base."""
    found = float(LAWS[name](np.array([float(rows)]))[0])
    if model == "larger" and name != "flat":
        found -= 0.05 * np.log2(rows)
    return found + 0.01 * rng.normal()


def scaling(seeds=3, models=("target", "larger")):
    rng = np.random.default_rng(1)
    size = dict(zip(NAMES, ROWS, strict=True))
    taken = []

    def take(model, repeat, note, losses):
        metrics = {f"eval/{n}/loss": v for n, v in losses.items()}
        metrics |= {f"eval/{n}/accuracy": 0.5 for n in NAMES}
        taken.append(Taken(model, repeat, note, 5, metrics))

    for repeat in range(seeds):
        for model in models:
            for f in FRACTIONS:
                rows = {n: max(1, round(f * size[n])) for n in NAMES}
                own = {n: loss(n, rows[n], model, rng) for n in NAMES}
                for n in NAMES:
                    note = {"curve": "alone", "domain": n, "fraction": f, "rows": {n: rows[n]}}
                    take(model, repeat, note, {**dict.fromkeys(NAMES, 2.5), n: own[n]})
                mixed = {n: own[n] + (MIXED[n] if f >= 0.25 else 0) for n in NAMES}
                noise = {n: v + 0.01 * rng.normal() for n, v in mixed.items()}
                take(model, repeat, {"curve": "together", "fraction": f, "rows": rows}, noise)
                # `grows` helps `done` at every amount, and takes no harm of it.
                pair = {"curve": "pair", "fixed": "grows", "varied": "done", "fraction": f}
                full = loss("grows", size["grows"], model, rng)
                beside = {"grows": full, "done": own["done"] - 0.4 + 0.01 * rng.normal()}
                note = {**pair, "rows": {"grows": size["grows"], "done": rows["done"]}}
                take(model, repeat, note, {**beside, "flat": 2.5})
    base = {f"eval/{n}/loss": 2.5 for n in NAMES}
    return Scaling(
        space=space(),
        models=models,
        fractions=FRACTIONS,
        pairs=(("grows", "done"),),
        counted=("grows", "done"),
        bases=dict.fromkeys(models, base),
        taken=tuple(taken),
        failed=0,
    )


@pytest.fixture(scope="module")
def found():
    return scaling()


def test_growth_is_told_by_domain(found):
    said = sentences(found)[0]
    assert said.startswith("target, alone, at all of the data: still grows: grows; saturated: ")
    assert "saturated: done, flat" in said
    law = found.alone("target", "done").fitted
    assert law.floor.low <= 0.3 <= law.floor.high
    assert law.noise == pytest.approx(0.01, rel=0.5)


def test_mixing_helps_and_hurts_where_it_does(found):
    by = {(c.model, c.domain): c for c in found.mixing()}
    assert by["target", "grows"].told(helps=True) == [1.0, 0.25]
    assert by["target", "grows"].told(helps=False) == []
    assert by["target", "done"].told(helps=False) == [1.0, 0.25]
    assert by["target", "flat"].told(True) == by["target", "flat"].told(False) == []
    assert by["target", "done"].by_fraction[1.0].value == pytest.approx(0.2, abs=0.03)
    text = " ".join(sentences(found))
    assert "mixing helps grows (at 1, 1/4); hurts done (at 1, 1/4)" in text
    assert "1: 2 / 2, 1/4: 2 / 2, 1/16: 0 / 0" in text


def test_a_pair_is_told_from_both_sides(found):
    fixed, varied = (c for c in found.beside() if c.model == "target")
    assert (fixed.domain, fixed.side) == ("grows", "fixed")
    assert fixed.told(True) == fixed.told(False) == []
    assert varied.told(helps=True) == list(FRACTIONS)
    assert "for done it helps (at 1, 1/4, 1/16, 1/64, 1/256 of done)" in " ".join(sentences(found))
    # Without the varied domain: the loss of it after training on the other alone.
    assert found.pair("target", ("grows", "done"), "varied").base == pytest.approx(2.5)


def test_the_larger_model_is_steeper_by_what_was_put_in(found):
    steeper = found.steeper("larger")
    assert steeper.mean.value == pytest.approx(0.05, abs=0.005)
    assert set(steeper.each) == {"grows", "done"}
    assert all(d.real and d.value > 0 for d in steeper.each.values())


def test_one_model_and_no_pairs_are_enough(found):
    bare = replace(
        found,
        models=("target",),
        pairs=(),
        taken=tuple(t for t in found.taken if t.model == "target" and t.curve != "pair"),
        _known={},
    )
    said = " ".join(sentences(bare))
    assert "Curves" not in said
    assert "in full" not in said
    json.dumps(plain(bare), allow_nan=False)


def test_what_is_missing_is_said(found):
    kept = tuple(
        t
        for t in found.taken
        if not (t.curve == "alone" and t.note["domain"] == "flat" and t.fraction < 0.1)
    )
    less = replace(found, taken=kept, failed=2, _known={})
    said = " ".join(sentences(less))
    assert "too few amounts: flat" in said
    assert "left out: flat at 1/16, 1/64, 1/256" in said
    assert "2 trainings failed" in said


def test_one_seed_says_that_it_cannot_tell():
    said = " ".join(sentences(scaling(seeds=1)))
    assert "mixing helps nowhere; hurts nowhere; no difference is seen in 0 of 0" in said


def test_numbers_tables_and_figures(found, tmp_path):
    told = json.loads(json.dumps(plain(found), allow_nan=False))
    assert {c["curve"] for c in told["curves"]} == {"alone", "together", "pair"}
    assert len(told["curves"]) == 2 * (3 + 3 + 2)
    assert len(told["curves"][0]["points"]) == 15
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(curves_report(found))
    text = console.export_text()
    assert "still grows" in text
    assert "…" not in text
    for name, figure in (
        ("alone", alone_figure(found)),
        ("together", together_figure(found)),
        ("pairs", pairs_figure(found)),
    ):
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_numbers_in_words():
    assert [part(f) for f in (1.0, 0.25, 1 / 256, 1 / 3, 0.3)] == [
        "1",
        "1/4",
        "1/256",
        "1/3",
        "0.3",
    ]
    assert interval(Estimate(0.3)) == "0.30"
    assert interval(Estimate(0.3, 0.2, 0.4)) == "0.30 [0.20, 0.40]"
    assert interval(Estimate(0.3, -np.inf, 0.4)) == "< 0.40"
    assert interval(Estimate(0.3, 0.2, np.inf)) == "> 0.20"
    assert interval(Estimate(0.3, -np.inf, np.inf)) == "n.i."
    assert interval(Estimate(-0.001, -0.001, -0.001)) == "0.00 [0.00, 0.00]"
