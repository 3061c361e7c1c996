"""A journal keeps what was acknowledged and has one writer, on a disk and in an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from raymix.core.errors import StudyError
from raymix.storage.journal import open_journal, read_journal
from raymix.storage.objects import Objects, _has_ended
from raymix.storage.place import place, read_whole, write_whole

LINES = [b'{"n":%d}\n' % n for n in range(6)]


@pytest.fixture(params=["disk", "s3"])
def path(request, tmp_path):
    home = request.getfixturevalue("bucket") if request.param == "s3" else tmp_path
    return place(home) / "runs" / "history.jsonl"


def test_lines_come_back_in_order_while_held_and_after(path):
    assert read_journal(path) is None
    journal = open_journal(path)
    assert journal.held == b""
    for number, line in enumerate(LINES):
        journal.append(line, durable=number % 2 == 1)
    # The last line was durable, and takes with it those that were not.
    assert read_journal(path) == b"".join(LINES)
    journal.close()
    assert read_journal(path) == b"".join(LINES)
    again = open_journal(path)
    assert again.held == b"".join(LINES)
    again.append(b"more\n", durable=True)
    again.close()
    assert read_journal(path) == b"".join(LINES) + b"more\n"


def test_a_second_writer_is_refused_by_name(path):
    journal = Objects(path, beat=5.0) if "s3" in str(path) else open_journal(path)
    with pytest.raises(StudyError, match=rf"another driver \(pid {os.getpid()} on "):
        Objects(path, beat=5.0) if "s3" in str(path) else open_journal(path)
    journal.append(LINES[0], durable=True)  # the first one goes on
    journal.close()
    assert read_journal(path) == LINES[0]


def test_at_the_end_the_parts_are_one_object(bucket):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path)
    for line in LINES:
        journal.append(line, durable=True)
    assert len(path.fs.find(bucket)) == len(LINES) + 1  # the parts and the lease
    journal.close()
    assert path.fs.find(bucket) == [path.path]
    assert path.read_bytes() == b"".join(LINES)


def test_a_torn_last_line_is_cut_off(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LINES[0] + b'{"n"')
    assert read_journal(path) == LINES[0]
    journal = open_journal(path)
    journal.append(LINES[1], durable=True)
    journal.close()
    assert read_journal(path) == LINES[0] + LINES[1]


def test_a_crash_while_parts_are_put_together_loses_and_doubles_nothing(bucket):
    path = place(bucket) / "history.jsonl"
    # All of it is in one object already, but only the first part has been removed.
    path.write_bytes(b"".join(LINES[:3]))
    for begin, line in ((8, LINES[1]), (16, LINES[2]), (24, LINES[3])):
        (path.with_name("history.jsonl.parts") / f"{begin:015d}").write_bytes(line)
    assert read_journal(path) == b"".join(LINES[:4])
    journal = Objects(path)
    assert journal.held == b"".join(LINES[:4])
    journal.close()
    assert read_journal(path) == b"".join(LINES[:4])


def test_a_missing_part_is_an_error_and_not_a_shorter_history(bucket):
    path = place(bucket) / "history.jsonl"
    path.write_bytes(LINES[0])
    (path.with_name("history.jsonl.parts") / f"{16:015d}").write_bytes(LINES[2])
    with pytest.raises(OSError, match="a part of it is missing"):
        read_journal(path)


WRITER = """
    import sys
    from raymix.storage.objects import Objects, _has_ended
    from raymix.storage.place import place
    journal = Objects(place(sys.argv[1]), beat=2.0)
    for number in range(10**9):
        journal.append(b"%d\\n" % number, durable=True)
        print(number, flush=True)
    """


def writer(path):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_was_acknowledged_survives_a_kill_and_the_next_one_goes_on_at_once(bucket):
    path = place(bucket) / "history.jsonl"
    process = writer(path)
    for _ in range(20):
        last = int(process.stdout.readline())
    with pytest.raises(StudyError, match=f"pid {process.pid} on"):
        Objects(path, beat=2.0)
    process.kill()
    rest = process.stdout.read()  # not communicate, which skips what readline has read ahead
    process.communicate(timeout=60)
    last = max([last, *map(int, rest.split("\n")[:-1])])
    journal = Objects(path, beat=1000.0)  # its process has ended on this machine: no waiting
    journal.close()
    found = [int(line) for line in journal.held.splitlines()]
    assert found == list(range(len(found)))
    assert len(found) > last


def test_of_two_that_believe_the_file_theirs_only_one_goes_on(bucket, monkeypatch):
    path = place(bucket) / "history.jsonl"
    stalled = Objects(path, beat=1000.0)  # never renews: as a driver that a suspended machine holds
    stalled.append(LINES[0], durable=True)
    other = Objects(path, beat=0.1)  # waits, and takes over
    assert other.held == LINES[0]
    other.append(LINES[1], durable=True)
    with pytest.raises(StudyError, match="another driver has taken over"):
        stalled.append(b'{"other":1}\n', durable=True)
    other.append(LINES[2], durable=True)
    other.close()
    stalled.close()
    assert read_journal(path) == b"".join(LINES[:3])


def test_a_holder_that_wakes_up_sees_that_it_has_lost(bucket):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path, beat=0.1)
    end = time.monotonic() + 30
    while not journal._lease.lost and time.monotonic() < end:
        # Again and again: the holder may just be about to write.
        write_whole(path.with_suffix(".lock"), b'{"token":"another"}')
        time.sleep(0.05)
    with pytest.raises(StudyError, match="another driver has taken over"):
        journal.append(LINES[0], durable=True)
    journal.close()
    assert path.with_suffix(".lock").exists()  # it is the other's


def test_an_answer_that_was_lost_is_no_second_writer(bucket):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path)
    # The part was created, but the store's answer never came: the line is written again.
    (path.with_name("history.jsonl.parts") / f"{0:015d}").write_bytes(LINES[0])
    journal.append(LINES[0], durable=True)
    journal.append(LINES[1], durable=True)
    journal.close()
    assert read_journal(path) == LINES[0] + LINES[1]


def test_a_driver_that_slept_until_the_other_had_ended_sees_that_it_has_lost(bucket):
    path = place(bucket) / "history.jsonl"
    slept = Objects(path, beat=1000.0)
    slept.append(LINES[0], durable=True)
    other = Objects(path, beat=0.1)
    other.append(LINES[1], durable=True)
    other.close()
    slept._lease._renewed -= 10_000  # the clock has gone on; its thread has not
    with pytest.raises(StudyError, match="another driver has taken over"):
        slept.append(LINES[2], durable=True)
    slept.close()
    assert read_journal(path) == LINES[0] + LINES[1]


def test_a_part_of_another_is_not_removed_with_the_own_ones(bucket, caplog):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path)
    journal.append(LINES[0], durable=True)
    strange = path.with_name("history.jsonl.parts") / f"{4:015d}"
    write_whole(strange, b"not of this history")
    journal.close()
    assert "is no part of" in caplog.text
    assert strange.exists()
    assert read_journal(path) == LINES[0]


def test_what_else_lies_among_the_parts_is_not_read(bucket):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path)
    write_whole(path.with_name("history.jsonl.parts") / "notes.txt", b"by hand")
    journal.append(LINES[0], durable=True)
    assert read_journal(path) == LINES[0]
    journal.close()
    assert read_journal(path) == LINES[0]


def test_an_interrupt_after_the_store_took_a_line_is_no_second_writer(bucket, monkeypatch):
    path = place(bucket) / "history.jsonl"
    journal = Objects(path, beat=1000.0)
    journal.append(LINES[0], durable=False)
    real = path.fs.pipe_file

    def interrupted(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(path.fs, "pipe_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(LINES[1], durable=True)
    journal.append(LINES[2], durable=True)
    journal.close()
    assert read_journal(path) == b"".join(LINES[:3])


def test_a_store_that_refuses_nothing_is_refused(bucket, monkeypatch):
    path = place(bucket) / "history.jsonl"
    real = path.fs.pipe_file
    monkeypatch.setattr(path.fs, "pipe_file", lambda name, data, mode="": real(name, data))
    with pytest.raises(OSError, match="without conditional writes"):
        Objects(path)


def test_a_lease_without_words_is_waited_for_and_taken(bucket):
    path = place(bucket) / "history.jsonl"
    write_whole(path.with_suffix(".lock"), b"")
    Objects(path, beat=0.1).close()
    assert not path.with_suffix(".lock").exists()


def test_a_process_of_the_same_number_elsewhere_is_not_taken_for_ended(bucket):
    """As in a container with the host's name: its processes cannot be seen from here."""
    path = place(bucket) / "history.jsonl"
    journal = Objects(path, beat=0.1)
    lock = path.with_suffix(".lock")
    held = json.loads(read_whole(lock))  # as it is at one moment: it is renewed meanwhile
    for changed, ended in (
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"begun": "1"}, True),
        ({"pid": 2**22 + 1, "pids": "pid:[1]"}, False),
        ({"pid": 2**22 + 1, "boot": "another"}, False),
    ):
        assert _has_ended({**held, **changed}) == ended, changed
    journal.close()
