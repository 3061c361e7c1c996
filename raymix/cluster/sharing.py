"""The study's tables where all nodes find them, as soon as there is a node that needs them."""

from __future__ import annotations

import logging

import ray

from raymix.core.errors import ClusterError
from raymix.train.config import Setup
from raymix.train.tables import publish_tables

_log = logging.getLogger(__name__)


class Sharing:
    """Publishes the tables of `setup` at most once.

    Made before nodes are asked what they see: one that comes later is not asked, and is taken for
    one that sees nothing.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._done = not setup.contents
        self._known = _alive()

    def publish(self) -> None:
        """Put the tables into the study's folder, where they are not yet.

        Raises:
            ClusterError: they cannot be written.
        """
        if self._done:
            return
        try:
            publish_tables(self._setup)
        except OSError as error:
            raise ClusterError(
                f"study.output_dir '{self._setup.output_dir}': cannot publish the prepared data in "
                f"it for nodes that do not see them: {error}"
            ) from error
        self._done = True

    def look(self) -> None:
        """Publish where a node has come; if that fails, the others go on without it."""
        if self._done:
            return
        new = _alive() - self._known
        if not new:
            return
        self._known |= new
        try:
            self.publish()
        except ClusterError as error:
            _log.warning("a node has come, which may not be able to train: %s", error)


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
