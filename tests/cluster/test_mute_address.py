"""An address at which something listens and never says a word: Ray alone would wait minutes."""

import socket
import struct
import threading

import pytest

from raymix.cluster import session
from raymix.cluster.config import Cluster
from raymix.core.errors import ClusterError


def test_an_address_that_says_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(session, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with (
            pytest.raises(
                ClusterError, match=f"cluster.address '{address}' does not answer: timed"
            ),
            session.connected(Cluster(address=address)),
        ):
            pass


def test_one_that_hangs_up_is_left_to_ray():
    def reset():
        line, _ = hangs_up.accept()
        with line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as hangs_up:
        answering = threading.Thread(target=reset)
        answering.start()
        session._answers(f"127.0.0.1:{hangs_up.getsockname()[1]}")
        answering.join()


def test_a_ray_that_runs_is_heard(ray_here):
    session._answers(ray_here.get_runtime_context().gcs_address)
