"""The history file: what survives a crash, a full disk and a second driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raymix.core.errors import StudyError
from raymix.study.store import FILE, Store, read_events, versions


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def filled(folder: Path, events: int = 3) -> Path:
    store = Store(folder, clock=lambda: 12.3456)
    for i in range(events):
        store.append("told", {"trial": i, "score": float("nan")})
    store.close()
    return folder / FILE


def test_events_are_lines_of_json(tmp_path):
    path = filled(tmp_path, 1)
    assert path.read_text() == '{"event":"told","time":12.346,"trial":0,"score":NaN}\n'
    (event,) = read_events(tmp_path)
    assert event["trial"] == 0
    assert read_events(path) == read_events(tmp_path) or event["score"] != event["score"]


def test_reopening_appends(tmp_path):
    filled(tmp_path, 2)
    store = Store(tmp_path)
    assert [e["trial"] for e in store.events] == [0, 1]
    store.append("told", {"trial": 2})
    store.close()
    assert [e["trial"] for e in read_events(tmp_path)] == [0, 1, 2]


def test_a_torn_last_line_is_cut_off_at_any_byte(tmp_path):
    path = filled(tmp_path)
    data = path.read_bytes()
    second = data[: data[:-1].rfind(b"\n") + 1]
    for cut in range(len(second), len(data)):
        path.write_bytes(data[:cut])
        assert [e["trial"] for e in read_events(tmp_path)] == [0, 1]
        assert path.stat().st_size == cut, "reading does not touch the file"
        store = Store(tmp_path)
        store.append("told", {"trial": 7})
        store.close()
        assert [e["trial"] for e in read_events(tmp_path)] == [0, 1, 7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"event":"told","tri', "line 2: not JSON"),
        (b"\x00\x00\x00\x00", "line 2: not JSON"),
        (b"", "line 2: not JSON"),
        (b"[1]", "line 2: not an event"),
        (b'{"trial":1}', "line 2: not an event"),
        (b'{"event":"told","x":"\xff"}', "line 2: not JSON"),
    ],
)
def test_any_other_corrupt_line_is_named(tmp_path, line, message):
    path = filled(tmp_path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(StudyError) as error:
        Store(tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    # The failed opening holds no lock.
    path.write_bytes(lines[0] + b"\n")
    Store(tmp_path).close()


def test_no_study_is_an_error(tmp_path):
    with pytest.raises(StudyError, match="no study at"):
        read_events(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot open the study"):
        Store(tmp_path / "file")


def test_a_second_driver_is_refused_by_pid(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StudyError, match=rf"another driver \(pid {os.getpid()} on "):
        Store(tmp_path)
    other = python("import sys; from raymix.study.store import Store; Store(sys.argv[1])", tmp_path)
    _, err = other.communicate(timeout=60)
    assert f"another driver (pid {os.getpid()} on" in err
    store.close()
    Store(tmp_path).close()


def test_a_second_driver_is_refused_where_the_lock_file_was_removed(tmp_path):
    first = Store(tmp_path)
    (tmp_path / "history.lock").unlink()
    with pytest.raises(StudyError, match=r"another driver .* runs the study in"):
        Store(tmp_path)
    # The one that was refused has not taken the study from the first, nor does it hold anything.
    first.append("told", {"trial": 0})
    first.close()
    second = Store(tmp_path)
    assert [event["trial"] for event in second.events] == [0]
    second.close()


def test_the_lock_ends_with_its_process_and_is_not_inherited(tmp_path):
    # The driver starts a long-lived child (as Ray does), then is killed.
    driver = python(
        """
        import subprocess, sys, time
        from raymix.study.store import Store
        store = Store(sys.argv[1])
        quiet = subprocess.DEVNULL
        child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=quiet, stderr=quiet)
        print(child.pid, flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    child = int(driver.stdout.readline())
    try:
        with pytest.raises(StudyError, match=f"pid {driver.pid}"):
            Store(tmp_path)
        driver.kill()
        driver.communicate(timeout=60)
        Store(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    writer = python(
        """
        import sys
        from raymix.study.store import Store
        store = Store(sys.argv[1])
        for i in range(10**9):
            store.append("reported", {"trial": i, "filler": "x" * 200})
            print(i, flush=True)
        """,
        tmp_path,
    )
    for _ in range(200):
        last = int(writer.stdout.readline())
    writer.kill()
    rest = writer.stdout.read()  # not communicate, which skips what readline has read ahead
    writer.communicate(timeout=60)
    last = max([last, *map(int, rest.split("\n")[:-1])])
    trials = [e["trial"] for e in read_events(tmp_path)]
    assert trials == list(range(len(trials)))
    assert len(trials) > last


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(tmp_path):
    # RLIMIT_FSIZE makes the kernel refuse to grow the file, in the middle of a line.
    code = """
        import resource, signal, sys
        from raymix.core.errors import StudyError
        from raymix.study.store import Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(sys.argv[1])
        store.append("told", {"trial": 0})
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
        for _ in range(2):
            try:
                store.append("told", {"trial": 1, "filler": "x" * 400})
            except StudyError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        store.append("told", {"trial": 1})
        """
    out, err = python(code, tmp_path).communicate(timeout=60)
    assert err == ""
    messages = out.splitlines()
    assert len(messages) == 2
    assert f"cannot write to {tmp_path / FILE}: File too large" in messages[0]
    assert [e["trial"] for e in read_events(tmp_path)] == [0, 1]
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 2


def test_lock_file_stands_beside_the_history(tmp_path):
    filled(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE, "history.lock"]


def test_versions_name_what_results_depend_on_without_importing_it():
    code = """
        import json, sys
        from raymix.study.store import versions
        found = versions()
        assert not {"torch", "ray", "transformers"} & set(sys.modules)
        print(json.dumps(found))
        """
    out, err = python(code).communicate(timeout=60)
    assert err == ""
    assert json.loads(out) == versions()
    assert {"torch", "numpy", "ray"} <= set(versions())
