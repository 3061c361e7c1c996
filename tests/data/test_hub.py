"""Hub ids, against a hub of one data set and one tokenizer that this test serves itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_rows import rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.jsonl}
  - {split: validation, path: valid.jsonl}
---
"""


def lines(count: int, start: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(count, start)).encode()


@pytest.fixture
def hub(tokenizer_folder: str) -> Iterator[str]:
    """A hub at an address of this machine: data set org/tiny, tokenizer org/words."""
    words = {p.name: p.read_bytes() for p in Path(tokenizer_folder).iterdir()}
    repos = {
        "datasets/org/tiny": {
            "README.md": CARD.encode(),
            "train.jsonl": lines(9, 0),
            "valid.jsonl": lines(4, 50),
        },
        "org/words": words,
    }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silence."""

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = urllib.parse.unquote(self.path.split("?")[0]).strip("/")
            repo, _, file = path.partition("/resolve/")
            file = file.partition("/")[2]
            if path.startswith("api/"):
                name = next((r for r in repos if r.split("/", 1)[-1] in path), None)
                body = None if name is None else self.about(name, "/tree/" in path)
            else:
                body = repos.get(repo, {}).get(file)
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header(
                    "X-Error-Code", "EntryNotFound" if repo in repos else "RepoNotFound"
                )
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def about(self, name: str, tree: bool) -> bytes:
            files = repos[name]
            if tree:
                return json.dumps(
                    [
                        {
                            "type": "file",
                            "path": path,
                            "size": len(body),
                            "oid": hashlib.sha1(body).hexdigest(),
                        }
                        for path, body in files.items()
                    ]
                ).encode()
            found = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "tags": []}
            return json.dumps({**found, "siblings": [{"rfilename": f} for f in files]}).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from raymix.core.errors import RaymixError
from raymix.data.prepare import DataSpec, cached, prepare
spec = DataSpec.model_validate(json.load(sys.stdin))
try:
    known = cached(spec) is not None
    made = prepare(spec, quiet=True)
    kept = {s: c.kept for s, c in made.parts[0].counts.items()}
    heavy = sorted({"torch", "transformers", "datasets"} & set(sys.modules))
    print(json.dumps([known, kept, made.fingerprint, heavy]))
except RaymixError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def run(folder: Path, endpoint: str, tokenizer: str, **entry: object) -> list[object]:
    """Prepare in a process of its own: the libraries read the hub's address when imported."""
    spec = {
        "datasets": [{"domain": "d", **entry}],
        "tokenizer": tokenizer,
        "cache_dir": str(folder / "cache"),
    }
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1" if endpoint == "" else "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        env={key: value for key, value in environment.items() if value},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[object] = json.loads(done.stdout)
    return said


def test_fetched_once_then_found_without_a_hub(hub: str, tmp_path: Path) -> None:
    entry = {"path": "org/tiny", "eval_split": "validation", "test_split": 3}
    known, kept, key, heavy = run(tmp_path, hub, "org/words", **entry)
    assert (known, kept, heavy) == (False, {"train": 6, "eval": 4, "test": 3}, [])
    assert run(tmp_path, "", "org/words", **entry) == [True, kept, key, []]
    (pin,) = (tmp_path / "cache" / "hub").iterdir()
    assert json.loads(pin.read_text()) == {"id": "org/tiny", "commit": COMMIT}


def test_unknown_split_and_data_set(hub: str, tmp_path: Path, tokenizer_folder: str) -> None:
    kind, message = run(tmp_path, hub, tokenizer_folder, path="org/tiny", eval_split="dev")
    assert (kind, "org/tiny has no split 'dev'; its splits: train, validation" in str(message)) == (
        "DataError",
        True,
    )
    kind, message = run(tmp_path, hub, tokenizer_folder, path="org/none", eval_split=1)
    assert kind == "DataError"
    assert "'org/none' is no local file or folder, and the hub does not give it" in str(message)


def test_unknown_tokenizer(hub: str, tmp_path: Path) -> None:
    kind, message = run(tmp_path, hub, "org/none", path="org/tiny", eval_split=1)
    assert (kind, "cannot load the tokenizer 'org/none'" in str(message)) == ("DataError", True)
