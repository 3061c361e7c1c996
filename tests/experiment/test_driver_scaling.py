"""What the driver costs: how growth is read off, and that every searcher is asked."""

import importlib

import numpy as np
import pytest
from scripts import EXPERIMENTS

import raymix.search
from raymix.core.trial import History, Proposal
from raymix.study.record import read
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.conformance import began, rng

LENGTHS = (64, 125, 250, 500, 1000)
ASK_ONCE = {"Doubled", "Online", "Uniform", "Proportional"}


@pytest.fixture
def part(monkeypatch):
    """A module of the benchmark, found as it is when the script runs."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("constant", [0.0, 1.0, 20.0])
def test_a_power_is_found_under_any_constant(part, power, constant):
    module = part("driver_growth")
    costs = {n: constant + 30.0 * (n / 1000) ** power for n in LENGTHS}
    found = module.growth(costs)
    assert found.power == pytest.approx(power, abs=0.02)
    linear = found.words == "at most linear"
    assert linear == (power <= 1.0)
    if not linear:
        assert found.words == f"above linear by n^{found.power - 1:.2f}"
    # The slope has the constant in it, and so is never above the power.
    assert found.slope <= power + 1e-9


def test_slope_is_that_of_the_last_doubling(part):
    found = part("driver_growth").growth({1: 1.0, 2: 2.0, 4: 8.0})
    assert found.slope == pytest.approx(2.0)


def test_a_line_within_the_noise_of_timings_is_one(part):
    """A hump in the middle of what hardly grows gives any power; a line passes through it, too."""
    costs = dict(zip(LENGTHS, (1.7, 1.74, 1.75, 1.73, 2.1), strict=True))
    found = part("driver_growth").growth(costs)
    assert found.power > 2
    assert found.words == f"linear within {found.astray:.0%}"
    square = {n: 20 + 30 * (n / 1000) ** 2 for n in LENGTHS}
    assert part("driver_growth").growth(square).astray > part("driver_growth").NOISE


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_what_hardly_grows_is_flat(part, noise):
    rough = 1.0 + noise * np.random.default_rng(0).normal(size=len(LENGTHS))
    found = part("driver_growth").growth(dict(zip(LENGTHS, rough.tolist(), strict=True)))
    assert found.words == "flat"
    assert np.isnan(found.power)


def test_a_cost_that_ends_growing_is_not_above_linear(part):
    """A Gaussian process on 256 points at the most: cubic below, the same ever after."""
    costs = {n: min(n, 256) ** 3 / 1e6 for n in LENGTHS}
    found = part("driver_growth").growth(costs)
    assert found.slope == 0.0
    assert found.words == "at most linear"


def test_every_searcher_is_asked_in_a_study_and_alone(part):
    module = part("driver_searchers")
    every = {*raymix.search.__all__, "Uniform", "Proportional", "Perturb", "Curves"}
    studied = {type(searcher).__name__ for searcher in module.in_a_study().values()}
    alone = module.alone(module.toy(4), 10)
    # The study that they are asked in is one of Dirichlet's.
    assert studied | {"Dirichlet"} == every
    assert {type(case.searcher).__name__ for case in alone.values()} == every - ASK_ONCE
    samplers = {case.searcher.sampler for name, case in alone.items() if "Optuna" in name}
    assert samplers == {"tpe", "gp"}


def test_histories_are_those_of_the_searchers(part):
    """A history made in one go: what is asked after any part of it is what comes next in it."""
    module = part("driver_searchers")
    problem, most = module.toy(4), 12
    start = began(problem.space(), problem)
    for name, case in module.alone(problem, most).items():
        own = case.play(case.space, problem, most)
        assert len(own) == most
        for length in (0, 5, most - 1):
            history = History((*start.trials, *own[:length]), module.METHOD, start.base)
            asked = case.searcher.propose(case.space, history, rng(length))
            assert isinstance(asked, Proposal), name
            if not name.startswith(("Dirichlet", "Grid", "Optuna")):
                assert asked == own[length].proposal, name


def test_a_study_is_cut_resumed_asked_and_reported(part, tmp_path):
    module = part("driver_study")
    problem = part("driver_searchers").toy(4)
    study = Study(tmp_path / "whole", module.plan_of(problem, 12), module.IDENTITY)
    run_serial(study, problem)
    study.close()
    lengths = (3, 6, 12)
    cut = module.cut(tmp_path / "whole", tmp_path / "cut", 6)
    told = [t for t in read(cut).history if t.method == module.SEARCH and not t.pending]
    assert len(told) == 6
    with pytest.raises(ValueError, match="fewer than 13 trials"):
        module.cut(tmp_path / "whole", tmp_path / "more", 13)
    steps, asks = module.studying(tmp_path / "whole", 4, lengths)
    assert set(asks) == set(part("driver_searchers").in_a_study())
    found = {name: row for rows in (steps, asks) for name, row in rows.items()}
    assert all(set(row) == set(lengths) for row in found.values())
    assert all(cost > 0 for row in found.values() for cost in row.values())
    # Both end in what a process of its own would print.
    for told in (module.whole(cut), module.told_of(cut)):
        assert told.keys() == {"s", "mib"}
        assert all(seconds > 0 for seconds in told["s"].values())
    assert (cut / "best_mixture.yaml").is_file()


def test_lengths_double_up_to_the_number_of_trials(part, monkeypatch):
    module = part("driver_scaling")
    assert module.lengths_of(1000) == (125, 250, 500, 1000)
    assert module.lengths_of(40) == (10, 20, 40)
    with pytest.raises(SystemExit):
        module.main(["--trials", "20"])
