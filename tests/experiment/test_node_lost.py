"""The script that loses a node: when it does, what it refuses, and, slowly, what it shows."""

import re
from types import SimpleNamespace

import pytest
from scripts import loaded, ran
from typer import Typer
from typer.testing import CliRunner

from raymix.core.job import Point
from raymix.study.record import read
from raymix.study.store import read_events

pytestmark = [
    # Ray's test cluster reads Ray Data's settings, which name what newer versions will drop.
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data"),
]


@pytest.fixture(scope="module")
def script():
    return loaded("node_lost.py")


def test_a_node_goes_when_all_trainings_are_well_between_two_checkpoints(script):
    """Of 12 trainings of 150 steps, with reports every 10 and checkpoints every 50."""
    did = []
    fate = script["Fate"](12, 2, 150, lambda: did.append("lost"), lambda: did.append("joined"))
    one, two = SimpleNamespace(number=1), SimpleNamespace(number=2)

    def reported(trial, step):
        fate.reported(trial, Point(step, step / 150, {}))
        return list(did)

    fate.trial_started(one)
    fate.trial_started(two)
    assert reported(one, 10) == reported(two, 10) == []  # nothing told yet
    fate.told = 4
    assert reported(two, 40) == []  # the next report comes with a checkpoint
    assert reported(two, 50) == []  # nothing would be lost
    assert reported(one, 20) == []
    assert reported(two, 60) == ["lost"]
    fate.told = 7
    assert reported(two, 70) == ["lost"]
    fate.told = 8
    assert reported(two, 80) == reported(two, 90) == ["lost", "joined"]


def test_bad_options_are_refused_before_anything_starts(script, tmp_path):
    app = Typer()
    app.command()(script["main"])

    def refused(*options):
        found = CliRunner().invoke(app, ["--folder", str(tmp_path), *options])
        assert found.exit_code != 0
        assert "Traceback" not in found.output
        return " ".join(found.output.split())

    bad = {"--domains": 7, "--trials": 1, "--steps": 3, "--seeds": -1, "--seed": -1, "--pools": 3}
    for option, value in bad.items():
        assert option in refused(option, str(value))
    (tmp_path / "file").touch()
    assert "file is a file" in refused("--folder", str(tmp_path / "file"))
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "history.jsonl").touch()
    assert "holds a study; choose another folder" in refused()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_in_small(script, tmp_path):
    small = ["--domains", "3", "--trials", "4", "--steps", "60", "--seeds", "1"]
    said = ran("node_lost.py", ["--folder", "out", *small], tmp_path).stdout
    assert re.search(r"\d+ s: node \w{8} is lost", said)
    assert re.search(r"\d+ s: node \w{8} has joined", said)
    must, same = re.search(r"(\d+) trainings had to .* same mixture: (\d+) were", said).groups()
    # The base model, two baselines and four random mixtures, whatever the order.
    assert int(must) == int(same) >= 7
    alike, equal = re.search(r"(\d+) were asked .* last bit: (\d+) did", said).groups()
    assert int(alike) == int(equal) >= int(must)
    assert "NOT THE SAME" not in said
    assert said.count("left behind: none") == 2
    assert read(tmp_path / "out" / "lost").pending == ()
    events = read_events(tmp_path / "out" / "lost")
    for one in loaded("two_histories.py")["struck"](events, 20):
        assert re.search(rf"-{one.trial:03d} .* {one.reached} of 60", said)
