"""The headline script: what it asks for, and, slowly, all of it on three domains."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
from scripts import loaded, ran

from raymix.core.mixture import Budget, Domain, Mixture, Space, Unit
from raymix.core.trial import Role
from raymix.report.facts import facts
from raymix.study.record import read


@pytest.fixture(scope="module")
def script():
    return loaded("ideal_vs_doremi.py")


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
    bounded = replace(space(), upper=(1.0, 0.5, 0.0))
    found = script["fixed"](bounded)
    assert [name for name in found if "ly " in name] == ["only d0", "mostly d1"]
    assert list(found["mostly d1"].values()) == pytest.approx([0.5, 0.5, 0])


def test_ideal_looks_at_as_many_rows_as_the_bill_pays_for(script):
    plan, slack = script["influence_plan"], script["SLACK"]
    # Rows of 10 tokens, trainings of 10,000; 30 rows of eval of each of 3 domains.
    sizes = script["Sizes"](10_000.0, 50, (500, 500, 500), (10.0, 10.0, 10.0), 900.0)
    for bill in (4.0, 5.0, 8.0, 20.0):
        rounds, rows = plan(sizes, bill, 512)
        cost = 1 + rounds * (1 + (2 * 3 * 10 * rows + 900) / 10_000)
        assert cost <= slack * bill
        if rounds < 3:
            # One round more would have left fewer rows than is worth it.
            more = (slack * bill - rounds - 2) * 10_000 / (rounds + 1)
            assert (more - 900) / 60 < 64
        else:
            # A row in twenty more would not fit, or there are no more.
            assert rows == 512 or 1 + 3 * (1 + (63 * rows + 960) / 10_000) > slack * bill
    # A domain gives no more rows than it has, and long rows cost more.
    short = script["Sizes"](10_000.0, 50, (10, 500, 500), (10.0, 10.0, 10.0), 900.0)
    assert plan(short, 5.0, 512) >= plan(sizes, 5.0, 512)
    long = script["Sizes"](10_000.0, 50, (500, 500, 500), (10.0, 10.0, 40.0), 900.0)
    assert plan(long, 5.0, 512) < plan(sizes, 5.0, 512)
    # What grows is dearer; with rows given there may be no round at all.
    assert plan(sizes, 5.0, 100, 1.15, True)[0] <= plan(sizes, 5.0, 100)[0]
    assert plan(sizes, 1.5, 512, 1.15, True) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_the_whole_comparison(tmp_path):
    """Every method keeps to its bill, all are confirmed, and MLflow has one parent."""
    options = ["--domains", "3", "--bill", "4", "--seeds", "2", "--no-paper", "--folder", "out"]
    printed = ran("ideal_vs_doremi.py", options, tmp_path)
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
    assert "Methods, each trained again at equal size" in printed.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "raymix"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.tags["role"] for run in parents] == ["study"]
    assert len(runs) == 1 + len(known.history)
