"""What each node must have and see before it trains: the driver's packages, the study's files.

A node of another version, or one that does not see the shared folder, would otherwise show itself
hours later, as a training that fails or as numbers that do not fit the others. One that does not
see the prepared data fetches them.
"""

from __future__ import annotations

import hashlib
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raymix
from raymix.cluster.resources import Need
from raymix.core.codec import decode, encode
from raymix.core.errors import ClusterError, ConfigError
from raymix.core.job import Json
from raymix.data.fetch import Content, is_here
from raymix.storage.place import check_writable, os_errors, place, read_whole, write_whole
from raymix.train.config import Setup

PACKAGES = ("ray", "torch", "transformers")
"""Whose versions must be the same on all nodes, beside Python's and raymix's own."""

_ANSWER_SECONDS = 60.0
_MARK = ".raymix-shared"
"""The file in `study.output_dir` by which nodes know that they see the driver's folder."""


_Answer = tuple[list[str], bool]
"""What is wrong with a node, and whether it lacks prepared data."""


@dataclass(frozen=True)
class Terms:
    """What a node must fulfil, as the driver has it.

    `node` is the driver's own, which fulfils it. `versions` by package. `files`: size in bytes (of
    a folder: -1) and path by the key that named it. `folder` is where workers write; it holds a
    file `_MARK` whose text is `mark`. `tables`: the prepared data by path, which a node may lack.
    """

    node: str
    versions: Mapping[str, str]
    files: Mapping[str, tuple[int, str]]
    folder: str
    mark: str
    tables: Mapping[str, Content] = field(default_factory=dict)


@contextmanager
def terms(setup: Setup) -> Iterator[Terms]:
    """What the connected driver asks of nodes; its folder is marked for the time of a study.

    Raises:
        ClusterError: the driver itself cannot write to `study.output_dir`.
    """
    mark = uuid.uuid4().hex
    path = place(setup.output_dir) / _MARK
    try:
        write_whole(path, mark.encode())
    except OSError as error:
        raise ClusterError(f"study.output_dir '{setup.output_dir}': {_said(error)}") from error
    try:
        me = ray.get_runtime_context().get_node_id()
        files = local_files(setup)
        yield Terms(me, versions(), files, setup.output_dir, mark, setup.contents)
    finally:
        with suppress(OSError), os_errors(path):
            path.unlink()


@cache
def versions() -> dict[str, str]:
    """Versions on this node. Of raymix the source counts, too: a checkout keeps its version."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return {**found, "raymix": f"{raymix.__version__} (source {_source()})"}


def _source() -> str:
    """A few characters that change with any line of raymix."""
    root = Path(raymix.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def local_files(setup: Setup) -> dict[str, tuple[int, str]]:
    """What workers read besides `output_dir` and tables: size and path by key; no hub ids."""
    named = {
        "model_name_or_path" if name == "target" else f"proxies.{name}": path
        for name, path in setup.models.items()
    }
    named |= {"tokenizer": setup.tokenizer or "", "chat_template": setup.chat_template or ""}
    return {key: (_size(path), path) for key, path in named.items() if path and _there(path)}


def _there(path: str) -> bool:
    return Path(path).exists()


def _size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else -1


def unfulfilled(asked: Terms) -> list[str]:
    """What is wrong on the node that this runs on, each in a sentence; [] where all is well."""
    return [*_other_versions(asked.versions, versions()), *_unseen(asked)]


def lacks_tables(asked: Terms) -> bool:
    """Whether the node that this runs on has to fetch any of the prepared data."""
    return not all(is_here(path, content) for path, content in asked.tables.items())


def _other_versions(driver: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {here.get(name, 'none')} there and {wanted} where the study was started"
        for name, wanted in driver.items()
        if here.get(name) != wanted
    ]


def _unseen(asked: Terms) -> list[str]:
    wrong = []
    for key, (size, path) in asked.files.items():
        if not _there(path):
            wrong.append(f"it does not see {key}: '{path}'")
        elif _size(path) != size:
            wrong.append(f"it sees another file for {key} at '{path}'")
    return [*wrong, *_elsewhere(asked)]


def _elsewhere(asked: Terms) -> list[str]:
    """Whether the folder here is the driver's, and can be written to."""
    try:
        mark = read_whole(place(asked.folder) / _MARK).decode()
    except FileNotFoundError:
        mark = ""
    except (OSError, ConfigError) as error:
        why = error.__cause__ if isinstance(error, ConfigError) else error
        return [f"it cannot reach study.output_dir '{asked.folder}': {_said(why)}"]
    if mark != asked.mark:
        return [f"it does not see study.output_dir '{asked.folder}'"]
    try:
        check_writable(place(asked.folder))
    except OSError as error:
        return [f"it cannot write to study.output_dir '{asked.folder}': {_said(error)}"]
    return []


def _said(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def refuse(wrong: Mapping[str, Sequence[str]]) -> None:
    """Raise ClusterError where a node, by name, has something wrong."""
    lines = [f"node {node}: {what}" for node, found in wrong.items() for what in found]
    if lines:
        raise ClusterError(
            "not all nodes can take part: " + "; ".join(lines) + ". Install the same packages on "
            "all nodes, and keep models and study.output_dir on storage that all of them see"
        )


def check_nodes(asked: Terms, need: Need) -> bool:
    """Ask all nodes that may hold a worker, but the driver's own; those that come: `check_here`.

    A node that goes in between is no fault: there will be fewer pools.

    Returns:
        Whether any of them lacks prepared data.

    Raises:
        ClusterError: names the nodes and what is wrong with each.
    """
    look = ray.remote(num_cpus=0, max_retries=1)(_look)
    answers = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != asked.node and need.fit(node["Resources"]):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[_name(node)] = look.options(scheduling_strategy=there).remote(encode(asked))
    found = {name: _answer(reference) for name, reference in answers.items()}
    refuse({name: wrong for name, (wrong, _) in found.items()})
    return any(lacks for _, lacks in found.values())


def check_here(plain: Json) -> None:
    """As `check_nodes`, in a worker as it starts: an autoscaler brings nodes at any time."""
    asked, here = decode(Terms, plain), ray.get_runtime_context().get_node_id()
    if here != asked.node:
        refuse({f"{ray.util.get_node_ip_address()} ({here[:8]})": unfulfilled(asked)})


def _name(node: Mapping[str, Json]) -> str:
    """Its address, and enough of its id where several share one."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _look(plain: Json) -> _Answer:
    asked = decode(Terms, plain)
    return unfulfilled(asked), lacks_tables(asked)


def _answer(reference: ray.ObjectRef) -> _Answer:
    try:
        wrong, lacks = ray.get(reference, timeout=_ANSWER_SECONDS)
    except GetTimeoutError:
        return [f"it gave no answer in {_ANSWER_SECONDS:g} seconds"], False
    except (NodeDiedError, TaskUnschedulableError):
        return [], False  # it has gone in between: nothing will run there
    except RayError as error:
        # It cannot even import raymix, for instance; the last line says why.
        return [f"it cannot run raymix: {str(error).strip().splitlines()[-1]}"], False
    return list(wrong), bool(lacks)
