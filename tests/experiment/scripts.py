"""The scripts of `experiments/`: what they define, and what they print when they run."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def loaded(name):
    """What a script defines; its neighbours are found as they are when it runs."""
    before = list(sys.path)
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return runpy.run_path(str(EXPERIMENTS / name))
    finally:
        sys.path[:] = before


def ran(name, options, folder):
    """A script that has run to its end in `folder`."""
    found = subprocess.run(
        [sys.executable, str(EXPERIMENTS / name), *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found
