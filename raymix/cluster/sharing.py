"""The study's tables where all nodes find them, as soon as there is a node that needs them."""

from __future__ import annotations

import logging
import threading
import time

import ray

from raymix.core.errors import ClusterError
from raymix.train.config import Setup
from raymix.train.tables import publish_tables

_log = logging.getLogger(__name__)

_AGAIN = 60.0
"""Seconds after which a publication that failed is tried again."""

_one_by_one = threading.Lock()
"""A study that is resumed in this process may come before the last one's upload has ended."""


class Sharing:
    """Publishes the tables of `setup` at most once.

    Made before nodes are asked what they see: one that comes later is not asked, and is taken for
    one that sees nothing.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._done = not setup.contents
        self._known = _alive()
        self._thread: threading.Thread | None = None
        self._next = 0.0

    def publish(self) -> None:
        """Put the tables into the study's folder, where they are not yet.

        Raises:
            ClusterError: they cannot be written.
        """
        if self._done:
            return
        try:
            with _one_by_one:
                publish_tables(self._setup)
        except OSError as error:
            raise ClusterError(
                f"study.output_dir '{self._setup.output_dir}': cannot publish the prepared data in "
                f"it for nodes that do not see them: {error}"
            ) from error
        self._done = True

    def look(self) -> None:
        """Publish where a node has come; returns at once, an upload may take long.

        If it fails, the others go on without it, and it is tried again while the node is there.
        What the end of the process cuts short is no harm: nobody sees half a table.
        """
        running = self._thread is not None and self._thread.is_alive()
        if self._done or running or time.monotonic() < self._next:
            return
        if _alive() - self._known:
            self._thread = threading.Thread(target=self._try, name="sharing", daemon=True)
            self._thread.start()

    def _try(self) -> None:
        try:
            self.publish()
        except Exception as error:  # no thread may end without a word
            _log.warning("a node has come, which may not be able to train: %s", error)
            self._next = time.monotonic() + _AGAIN


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
