"""The headline script: what it asks for, and, slowly, all of it on three domains."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

from raymix.core.errors import ConfigError
from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import Role
from raymix.report.facts import facts
from raymix.study.record import read

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    before = list(sys.path)
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return runpy.run_path(str(EXPERIMENTS / "ideal_vs_doremi.py"))
    finally:
        sys.path[:] = before


def space(rows=(100, 400, 900), amount=1000):
    domains = tuple(Domain(f"d{i}", n, 20 * n, 10 * n) for i, n in enumerate(rows))
    prior = Mixture.normalised([d.name for d in domains], rows)
    free = ((0.0,) * 3, (1.0,) * 3, (np.inf,) * 3)
    return Space(domains, Budget(amount, Unit.EXAMPLES), prior, *free)


def test_rules_of_thumb_follow_sizes(script):
    found = script["fixed"](space())
    # Square roots 10, 20, 30; twice the median is 800.
    assert list(found["temperature 2"].values()) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert list(found["size-capped"].values()) == pytest.approx(
        [100 / 1300, 400 / 1300, 800 / 1300]
    )
    assert list(found["only d1"].values()) == pytest.approx([0, 1, 0])


def test_a_domain_alone_is_as_much_of_it_as_bounds_allow(script):
    from dataclasses import replace

    bounded = replace(space(), upper=(1.0, 0.5, 1.0))
    only = script["fixed"](bounded)["only d1"]
    assert list(only.values()) == pytest.approx([0.25, 0.5, 0.25])


def test_ideal_looks_at_as_many_rows_as_the_bill_pays_for(script):
    influence_rows = script["influence_rows"]
    # 3 rounds: 4 trainings leave 1 unit, 1000 rows; a measurement may take 333. 3 domains with 30
    # rows of eval take 90, so (333 - 90) / (2 * 3) = 40 rows of each could be looked at: too few.
    # 2 rounds: (4 / 2 - 1) * 1000 - 90 = 910, so 151.
    assert influence_rows(space(), 5.0, 512, 30) == (2, 151)
    # Nor are more looked at than `rows`.
    assert influence_rows(space(), 50.0, 512, 30) == (3, 512)
    with pytest.raises(ConfigError, match="--bill 2 does not pay for a round of IDEAL"):
        influence_rows(space(), 2.0, 512, 30)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_the_whole_comparison(tmp_path):
    """Every method keeps to its bill, all are confirmed, and MLflow has one parent."""
    options = ["--domains", "3", "--bill", "4", "--seeds", "2", "--no-paper", "--folder", "out"]
    ran = subprocess.run(
        [sys.executable, str(EXPERIMENTS / "ideal_vs_doremi.py"), *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    known = facts(read(tmp_path / "out" / "study"))
    methods = ("doubled weakest", "dirichlet", "tpe", "doremi", "doge", "mos", "ideal")
    assert {bill.member.group for bill in known.bills.values()} == set(methods)
    for name, bill in known.bills.items():
        # What a first measurement or a reweighter takes beside the steps is not known beforehand.
        assert 0 < bill.spent <= 4.2, name
    confirmed = [t for t in known.history if t.role is Role.CONFIRM]
    groups = {t.proposal.note["group"] for t in confirmed}
    assert groups >= {*methods, "uniform", "proportional", "only cipher"}
    assert {t.seed for t in confirmed} == {1000, 1001}
    for trial in confirmed:
        metrics = trial.result.metrics
        assert all(0 <= metrics[f"test/{n}/accuracy"] <= 1 for n in known.domains)
        assert np.isfinite([metrics[f"test/{n}/loss"] for n in known.domains]).all()
    for name in ("methods.png", "trajectories.png", "cost.png"):
        assert (tmp_path / "out" / "study" / "figures" / name).stat().st_size > 10_000
    assert "Methods, each trained again at equal size" in ran.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "raymix"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.tags["role"] for run in parents] == ["study"]
    assert len(runs) == 1 + len(known.history)
