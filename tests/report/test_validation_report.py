"""Influence held against retraining: tables, words, JSON and figure."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from influence_told import Checked, perturb
from rich.console import Console

from raymix.core.errors import SearchError
from raymix.report.validation import (
    clear_domains,
    probe_report,
    validation_of,
    verdict,
    write_validation,
)
from raymix.study.record import read
from raymix.testing.toy import Toy


def printed(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return " ".join(console.file.getvalue().split())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perturbed")
    perturb(folder, Checked(Toy(noise=0.001)), repeats=3)
    return read(folder)


def test_the_true_influence_follows_retraining(record):
    found, each = validation_of(record)
    assert (found.repeats, found.domains) == (3, ("math", "code", "chat"))
    assert set(clear_domains(found)) == set(found.domains)
    said = verdict(found, each, record)
    assert said[0].startswith("EK-FAC follows retraining here (1.00)")
    assert "fixed total, rows seen 2.0 to 2.0 times" in said[1]
    assert "weights moved by 10.0%" in said[1]
    assert said[-1] == "Its self-checks do not warn."


def test_all_is_printed(record):
    text = printed(probe_report(record, validated=True))
    assert "Agreement with retraining (3 domains, 3 repeat(s))" in text
    for name in ("ekfac size-weighted", "ekfac plain means", "identity", "adam", "ceiling"):
        assert name in text
    found, _ = validation_of(record)
    for name, value, error in zip(found.domains, found.truth, found.errors, strict=True):
        assert f"{name} {value:+.4f} {error:.4f}" in text
    assert "Agreement" not in printed(probe_report(record, validated=False))


def test_files_hold_the_same(record, tmp_path):
    data, image = write_validation(record, tmp_path)
    assert (data.name, image.name) == ("validation.json", "validation.png")
    plain = json.loads(data.read_text())
    found, each = validation_of(record)
    assert plain["truth"] == list(found.truth)
    assert plain["rows"][0]["name"] == "ekfac"
    assert plain["total"] == "fixed"
    assert plain["doubts"] == []
    assert plain["verdict"] == verdict(found, each, record)
    assert image.read_bytes().startswith(b"\x89PNG")


def test_one_that_points_the_other_way_is_not_to_be_relied_on(tmp_path):
    perturb(tmp_path, Checked(Toy(noise=0.001), sign=-1.0))
    said = verdict(*validation_of(read(tmp_path)), read(tmp_path))
    assert said[0] == "EK-FAC does not follow retraining here (-1.00): do not rely on influence."
    assert "Nearest to retraining is adam" in said[2]


def test_noise_above_the_effects_is_said(record):
    found, each = validation_of(record)
    noisy = replace(found, errors=tuple(abs(value) for value in found.truth))
    assert clear_domains(noisy) == ()
    said = verdict(noisy, each, record)
    assert said[0].startswith("Cannot tell: no domain's effect stands out")


def test_one_repeat_has_no_noise_to_compare_with(tmp_path):
    perturb(tmp_path, repeats=1)
    found, each = validation_of(read(tmp_path))
    assert all(math.isnan(error) for error in found.errors)
    said = verdict(found, each, read(tmp_path))
    assert any("--repeats 2 or more" in sentence for sentence in said)
    write_validation(read(tmp_path), tmp_path)


def test_a_measurement_alone_is_no_validation(tmp_path):
    perturb(tmp_path, trials=1)
    record = read(tmp_path)
    assert "10% more of" in printed(probe_report(record, validated=False))
    with pytest.raises(SearchError, match="no repeat"):
        validation_of(record)


def test_doubts_go_into_the_words(tmp_path):
    perturb(tmp_path, Checked(Toy(noise=0.001), wrong=1.0, epochs=40.0))
    record = read(tmp_path)
    said = verdict(*validation_of(record), record)
    assert "Its self-checks warn" in said[-1]
    assert "math 40 times" in said[-1]
