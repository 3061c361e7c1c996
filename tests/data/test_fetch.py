"""Tables by content: published once, fetched once by a node, verified, whole or not at all."""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from raymix.core.errors import DataError
from raymix.data import fetch as module
from raymix.data.fetch import Content, content_of, fetch, is_here, publish, shared_at
from raymix.storage import transfer
from raymix.storage.place import place

BYTES = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    monkeypatch.setattr(module, "_ROUND", 0.05)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "cache" / "train.arrow"
    path.parent.mkdir()
    path.write_bytes(BYTES)
    return str(path)


@pytest.fixture
def content(table):
    return content_of(table)


@pytest.fixture
def study(tmp_path, table, content):
    """A study's folder in which the table is published."""
    publish({table: content}, tmp_path / "study")
    return tmp_path / "study"


def inside(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_content_is_size_and_sha256(table):
    assert content_of(table) == Content(10_240, hashlib.sha256(BYTES).hexdigest())
    assert content_of(table, "known") == Content(10_240, "known")


def test_here_is_what_has_the_size(table, content, tmp_path):
    assert is_here(table, content)
    Path(table).write_bytes(BYTES[:-1])
    assert not is_here(table, content)
    assert not is_here(tmp_path / "none", content)


def test_it_is_published_under_its_hash_and_nothing_else_is_left(study, table, content):
    assert inside(study) == [f"data/{content.sha256}.arrow"]
    assert (study / "data" / f"{content.sha256}.arrow").read_bytes() == BYTES
    publish({table: content}, study)
    assert inside(study) == [f"data/{content.sha256}.arrow"]


def test_what_is_published_is_not_written_again_and_what_was_cut_short_is(study, table, content):
    shared = Path(shared_at(study, content))
    shared.unlink()
    shared.write_bytes(bytes(len(BYTES)))
    publish({table: content}, study)
    assert shared.read_bytes() == bytes(len(BYTES))
    shared.write_bytes(b"short")
    publish({table: content}, study)
    assert shared.read_bytes() == BYTES


def test_within_a_file_system_publishing_takes_no_room(study, table, content):
    assert Path(shared_at(study, content)).samefile(table)
    # The cache may be emptied: the study keeps its data.
    Path(table).unlink()
    assert Path(shared_at(study, content)).read_bytes() == BYTES


def test_a_node_fetches_it_into_its_cache(study, table, content, tmp_path):
    found = fetch(table, content, study, tmp_path / "node")
    assert found == tmp_path / "node" / "fetched" / f"{content.sha256}.arrow"
    assert found.read_bytes() == BYTES
    assert not found.samefile(shared_at(study, content))
    assert inside(tmp_path / "node") == [
        f"fetched/{content.sha256}.{end}" for end in ("arrow", "lock")
    ]


def test_what_is_in_the_cache_is_not_fetched_again(study, table, content, tmp_path):
    found = fetch(table, content, study, tmp_path / "node")
    Path(shared_at(study, content)).unlink()
    before = found.stat().st_mtime_ns
    assert fetch(table, content, study, tmp_path / "node") == found
    # As after a change of its time alone: it is read, and is whole.
    os.utime(found, ns=(before, before + 10**9))
    assert fetch(table, content, study, tmp_path / "node") == found
    assert found.stat().st_mtime_ns == before + 10**9


@pytest.mark.parametrize("damage", [BYTES[:-1], BYTES[:-1] + b"\x00", b""])
def test_a_damaged_copy_is_fetched_again(study, table, content, tmp_path, damage):
    found = fetch(table, content, study, tmp_path / "node")
    before = found.stat().st_mtime_ns
    found.write_bytes(damage)
    os.utime(found, ns=(before, before + 10**9))
    assert fetch(table, content, study, tmp_path / "node").read_bytes() == BYTES


def test_what_a_killed_process_has_left_does_no_harm(study, table, content, tmp_path):
    folder = tmp_path / "node" / "fetched"
    folder.mkdir(parents=True)
    (folder / f".draft-{content.sha256}.arrow").write_bytes(BYTES * 2)
    (folder / f"{content.sha256}.lock").write_text("nonsense")
    assert fetch(table, content, study, tmp_path / "node").read_bytes() == BYTES
    assert sorted(p.suffix for p in folder.iterdir()) == [".arrow", ".lock"]


def test_nothing_published_is_said_in_words(table, content, tmp_path):
    with pytest.raises(DataError) as error:
        fetch(table, content, tmp_path / "study", tmp_path / "node")
    said = str(error.value)
    assert f"does not see the prepared table '{table}'" in said
    assert f"there is no '{tmp_path}/study/data/{content.sha256}.arrow'" in said
    assert sorted(p.suffix for p in (tmp_path / "node" / "fetched").iterdir()) == [".lock"]


def test_what_is_published_later_is_waited_for_with_signs_of_life(table, content, tmp_path):
    signs = []

    def alive():
        signs.append(None)
        if len(signs) == 2:
            publish({table: content}, tmp_path / "study")

    found = fetch(table, content, tmp_path / "study", tmp_path / "node", alive, patience=60)
    assert found.read_bytes() == BYTES
    assert len(signs) >= 2
    with pytest.raises(DataError, match="does not see the prepared table"):
        fetch(table, content, tmp_path / "other", tmp_path / "another", alive, patience=0.1)


def test_long_work_gives_signs_of_life(study, table, content, tmp_path, monkeypatch):
    signs = []
    found = fetch(table, content, study, tmp_path / "node")
    before = found.stat().st_mtime_ns
    # As after a change of its time alone: it is read again.
    os.utime(found, ns=(before, before + 10**9))
    fetch(table, content, study, tmp_path / "node", lambda: signs.append(None))
    assert len(signs) == 1
    # And for each block that has come.
    monkeypatch.setattr(transfer, "_BLOCK", len(BYTES) // 2)
    fetch(table, content, study, tmp_path / "another", lambda: signs.append(None))
    assert len(signs) == 1 + -(-len(BYTES) // (len(BYTES) // 2))


def test_who_waits_is_alive_as_long_as_the_one_that_it_waits_for(study, table, content, tmp_path):
    folder = tmp_path / "node" / "fetched"
    folder.mkdir(parents=True)
    lock = os.open(folder / f"{content.sha256}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signs = []
    what = (table, content, study, tmp_path / "node", lambda: signs.append(None))
    waiting = threading.Thread(target=fetch, args=what)
    waiting.start()
    for count in (1, 2, 3):
        until(lambda count=count: len(signs) == count)
        os.utime(lock, (count, count))  # not two times in one tick of the clock
    os.close(lock)
    waiting.join()
    assert is_here(folder / f"{content.sha256}.arrow", content)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_something_else_under_its_name_is_named_and_not_kept(study, table, content, tmp_path):
    shared = Path(shared_at(study, content))
    shared.unlink()
    shared.write_bytes(BYTES[::-1])
    with pytest.raises(DataError) as error:
        fetch(table, content, study, tmp_path / "node")
    said = str(error.value)
    assert f"'{shared}' is not the prepared table '{table}'" in said
    assert hashlib.sha256(BYTES[::-1]).hexdigest() in said
    assert sorted(p.suffix for p in (tmp_path / "node" / "fetched").iterdir()) == [".lock"]


def test_a_cache_that_cannot_be_made_is_said_in_words(study, table, content, tmp_path):
    (tmp_path / "node").write_text("a file")
    with pytest.raises(DataError, match=r"cannot fetch the prepared table .* Not a directory"):
        fetch(table, content, study, tmp_path / "node")


@pytest.fixture
def disk(tmp_path):
    """Makes a file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a small file system cannot be mounted here (needs root)")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_another_file_system_gets_a_copy(disk, table, content):
    folder = disk("64k")
    publish({table: content}, folder)
    assert inside(folder) == [f"data/{content.sha256}.arrow"]
    assert (folder / "data" / f"{content.sha256}.arrow").read_bytes() == BYTES


def test_no_room_is_said_in_words_and_leaves_nothing(study, table, content, disk):
    small_disk = disk("8k")
    with pytest.raises(DataError, match="No space left on device") as error:
        fetch(table, content, study, small_disk)
    assert f"cannot fetch the prepared table '{table}' from '{study}/data/" in str(error.value)
    assert inside(small_disk) == [f"fetched/{content.sha256}.lock"]
    with pytest.raises(OSError, match="No space left on device"):
        publish({table: content}, small_disk)
    assert inside(small_disk) == [f"fetched/{content.sha256}.lock"]


def test_an_object_store_gets_a_copy(table, content, tmp_path):
    folder = place("memory://fetch-tests/study")
    try:
        publish({table: content}, str(folder))
        found = fetch(table, content, str(folder), tmp_path / "node")
        assert found.read_bytes() == BYTES
        folder.fs.rm(f"{folder.path}/data/{content.sha256}.arrow")
        with pytest.raises(DataError, match=r"there is no 'memory://.*fetch-tests/study/data/"):
            fetch(table, content, str(folder), tmp_path / "other")
    finally:
        fsspec.filesystem("memory").store.clear()


FETCH = """
import sys
from pathlib import Path
from raymix.data.fetch import Content, fetch
table, size, sha256, study, cache = sys.argv[1:]
print(fetch(table, Content(int(size), sha256), study, Path(cache)).stat().st_ino)
"""


def _holds(process, path):
    """Whether a process has the file open."""
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    with suppress(FileNotFoundError):
        return any(file.exists() and file.samefile(path) for file in files)
    return False


def test_of_two_processes_one_fetches_and_the_other_waits(study, table, content, tmp_path):
    folder = tmp_path / "node" / "fetched"
    folder.mkdir(parents=True)
    path = folder / f"{content.sha256}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    what = [table, str(content.size), content.sha256, str(study), str(tmp_path / "node")]
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCH, *what], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        end = time.monotonic() + 60
        while not all(_holds(process, path) for process in processes):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert inside(folder) == [path.name]
        os.close(lock)
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # Had both fetched it, the second one would have put another file in the place of the first's.
    assert said[0] == said[1] == f"{(folder / f'{content.sha256}.arrow').stat().st_ino}\n"
