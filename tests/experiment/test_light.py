"""`check` and `preview` answer without torch and Ray once the data are prepared."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "transformers", "mlflow", "datasets")

RUN = f"""
import json, sys
from typer.testing import CliRunner
from raymix.cli import app
done = CliRunner().invoke(app, sys.argv[1:])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps([done.exit_code, heavy, done.output]))
"""


def invoke(*arguments):
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(ran.stdout.splitlines()[-1])


def test_importing_raymix_loads_no_framework():
    code = f"import sys, raymix; print([n for n in {HEAVY!r} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["check", "preview", "plan"])
def test_no_framework_is_loaded(written, verb):
    code, heavy, output = invoke(verb, written)
    assert (code, heavy) == (0, []), output


def test_nor_where_the_data_must_be_prepared_first(written, tmp_path):
    code, heavy, output = invoke("check", written, f"cache_dir={tmp_path / 'new'}")
    assert (code, heavy) == (0, []), output


def test_preview_shows_what_a_mixture_realises(written):
    code, _, output = invoke("preview", written, "--weights", "copy=.5,cipher=.25,mirror=.25")
    assert code == 0, output
    assert "160" in output
    assert "10 steps" in output
    code, _, output = invoke("preview", written, "--weights", "copy=.5,cipher=.6")
    assert code == 1
    assert "weights must sum to 1, got 1.1" in output


def test_plan_counts_the_trainings(written):
    code, _, output = invoke("plan", written)
    assert code == 0, output
    # 2 baselines, 2 trials, (1 + 2) mixtures with 2 fresh seeds each.
    assert "10" in next(line for line in output.splitlines() if "in all" in line)
