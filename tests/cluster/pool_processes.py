"""Studies in processes of their own, and what they leave behind."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent


def begin(folder, trainer, pools=1, workers=1, trials=2, scheduler="none", leads=False):
    """Start `pool_studies.py`; what it trains goes to `folder`. `leads`: a group of its own."""
    args = [folder, trainer, pools, workers, trials, scheduler]
    return subprocess.Popen(
        [sys.executable, HERE / "pool_studies.py", *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=leads,
    )


def finish(process, seconds=300):
    output, _ = process.communicate(timeout=seconds)
    return output


def log(folder):
    """Steps that were trained: (trial, attempt, step, process)."""
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def free_port():
    """A port below those that the kernel may give to somebody else before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def comes_to(process, folder, trial, step, seconds=180):
    """Wait until a step is trained; if the study ends before, its own words are the error."""
    end = time.monotonic() + seconds
    while not any(line[0] == trial and line[2] == step for line in log(folder)):
        if process.poll() is not None:
            pytest.fail(f"it has ended: {finish(process)}")
        if time.monotonic() > end:
            process.send_signal(signal.SIGINT)
            pytest.fail(f"it hangs: {log(folder)[-3:]} {finish(process)}")
        time.sleep(0.05)


def alive(processes):
    """Those that still run. The dead ones that nobody has waited for do not count."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def family(process):
    """The process and all that it started, Ray's own processes and workers included."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def names(processes):
    """Command lines of those that still run."""
    found = []
    for process in alive(processes):
        with suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return found


def named(process, name):
    """Ray's process of this name among the study's."""
    (found,) = [p for p in family(process) if any(n.startswith(f"ray::{name}") for n in names([p]))]
    return found
