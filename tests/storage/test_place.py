"""The verbs for files and folders do the same on a disk and in an object store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from upath import UPath

from raymix.core.errors import ConfigError, StudyError
from raymix.storage.copies import Copies, at_hand
from raymix.storage.place import (
    absolute,
    check_writable,
    draft_of,
    is_url,
    place,
    published,
    put,
    remove,
    write_whole,
)
from raymix.storage.scratch import Scratch, sweep


@pytest.fixture(params=["disk", "s3"])
def home(request, tmp_path):
    return place(request.getfixturevalue("bucket") if request.param == "s3" else tmp_path)


def contents(folder):
    here = at_hand(folder)
    files = (p for p in sorted(here.rglob("*")) if p.is_file())
    return {p.relative_to(here).as_posix(): p.read_bytes() for p in files}


def test_a_path_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(place("runs/a"), Path)
    assert isinstance(place(Path("runs/a")), Path)
    assert absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert absolute(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert absolute("s3://b/runs/a") == "s3://b/runs/a"
    assert [is_url(w) for w in ("runs/a", "s3://b/a", Path("s3://b"))] == [False, True, False]


@pytest.mark.parametrize("url", ["s4://bucket/runs", "://bucket"])
def test_an_unknown_kind_of_url_is_named(url):
    with pytest.raises(ConfigError, match=url):
        place(url)


def test_a_url_with_a_character_that_stands_for_others_is_refused():
    # `s3://b/lr[13]` would also be `s3://b/lr1`, whose files would be removed with its own.
    for name in ("lr[13]", "run*", "run?"):
        with pytest.raises(ConfigError, match="may not have"):
            place(f"s3://b/{name}/study")


def test_a_path_object_that_keeps_listings_does_not_keep_them_here(bucket):
    mine = UPath(f"{bucket}/runs")
    for names in (["a"], ["a", "b"]):
        write_whole(place(f"{bucket}/runs/{names[-1]}"), b"1")
        assert sorted(p.name for p in place(mine).iterdir()) == names


def test_a_whole_bucket_is_never_removed(bucket):
    write_whole(place(bucket) / "of-another", b"1")
    with pytest.raises(OSError, match="is a whole bucket"):
        remove(place(bucket))
    assert (place(bucket) / "of-another").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"gs://b/runs.*raymix\[gs\]"):
        place("gs://b/runs")


def test_a_folder_takes_the_place_of_what_was_there(home):
    folder = home / "checkpoints" / "step-1"
    for values in ({"a": b"1", "old": b"2", "last": b"3"}, {"a": b"4", "sub/b": b"", "last": b"5"}):
        draft = draft_of(folder)
        for name, data in values.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(data)
        put(draft, folder, "last")
        assert not draft.exists()
        assert contents(folder) == values
    remove(folder)
    assert not folder.exists()
    remove(folder)  # nothing there is no error


def test_the_file_that_vouches_for_the_others_goes_last(bucket, monkeypatch):
    folder = place(bucket) / "step-1"
    draft = draft_of(folder)
    for name in ("a", "last", "z"):
        (draft / name).write_bytes(b"x")
    seen, real = [], folder.fs.put

    def put_some(sources, targets):
        seen.append([target.rpartition("/")[2] for target in targets])
        return real(sources, targets)

    monkeypatch.setattr(folder.fs, "put", put_some)
    put(draft, folder, "last")
    assert seen == [["a", "z"], ["last"]]


def test_a_file_is_written_whole_or_not_at_all(home):
    path = home / "new" / "file"
    write_whole(path, b"1")
    write_whole(path, b"22")
    assert path.read_bytes() == b"22"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_reports_are_published(home):
    home = home / "study"
    check_writable(home)
    with published(home) as here:
        (here / "figures").mkdir()
        (here / "figures" / "a.png").write_bytes(b"image")
    assert (home / "figures" / "a.png").read_bytes() == b"image"
    assert [p.name for p in home.iterdir()] == ["figures"]  # and no probe is left


def test_what_cannot_be_written_is_an_os_error(bucket, tmp_path):
    with pytest.raises(OSError, match="bucket does not exist"):
        check_writable(place("s3://no-such-bucket/runs"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_writable(place(tmp_path / "file" / "runs"))


def test_a_store_that_does_not_answer_is_an_os_error(bucket):
    code = """if True:
        import os
        from raymix.storage.place import check_writable, place
        try:
            check_writable(place("s3://b/runs"))
        except OSError as error:
            print(error)
        """
    nobody = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=nobody, capture_output=True, text=True, timeout=120
    )
    assert "127.0.0.1:9" in found.stdout, found.stderr


def test_a_copy_is_made_once_and_again_when_the_folder_has_changed(bucket, monkeypatch):
    folder, held = place(bucket) / "step-1", Copies(Scratch())
    write_whole(folder / "a", b"1")
    first = held.of(folder)
    (first / "a").write_bytes(b"mine")
    assert (held.of(folder) / "a").read_bytes() == b"mine"  # not fetched again
    write_whole(folder / "a", b"2")
    assert (held.of(folder) / "a").read_bytes() == b"2"
    (held.of(folder) / "a").unlink()  # as by what cleans temporary folders by age
    assert (held.of(folder) / "a").read_bytes() == b"2"
    remove(folder)
    with pytest.raises(FileNotFoundError, match="no folder"):
        held.of(folder)


def test_only_the_newest_copies_are_kept(bucket):
    held = Copies(Scratch(), most=2)
    folders = [place(bucket) / name for name in "abc"]
    for folder in folders:
        write_whole(folder / "x", folder.name.encode())
    places = [held.of(folder) for folder in folders]
    assert [here.exists() for here in places] == [False, True, True]
    held.of(folders[1])
    held.of(folders[0])
    assert [here.exists() for here in places] == [True, True, False]


def test_copies_of_a_killed_process_are_swept_and_those_of_a_live_one_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = """if True:
        import os, sys
        from raymix.storage.scratch import scratch
        print(scratch().folder, flush=True)
        sys.stdin.read(1)
        os._exit(9)
        """
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs = Path(child.stdout.readline().strip())
    sweep()
    assert theirs.exists()
    child.communicate("x", timeout=60)
    assert theirs.exists()
    sweep()
    assert not theirs.exists()


def test_a_file_is_as_readable_for_others_as_any(tmp_path):
    write_whole(place(tmp_path / "ours"), b"1")
    (tmp_path / "any").write_bytes(b"1")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_what_cannot_be_sent_does_not_hide_why_the_work_ended(bucket, monkeypatch):
    home = place(bucket) / "study"

    def denied(*args, **kwargs):
        raise PermissionError("Access Denied")

    def work(ends):
        with published(home) as here:
            (here / "a").write_bytes(b"1")
            if ends is not None:
                raise ends

    monkeypatch.setattr(home.fs, "pipe_file", denied)
    with pytest.raises(StudyError, match=r"cannot write to .* Access Denied"):
        work(None)
    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())


def test_an_interrupt_leaves_no_draft(bucket):
    draft = draft_of(place(bucket) / "step-1")
    assert draft.parent.name.startswith("raymix-copies-")  # which goes with the process
