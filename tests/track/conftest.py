import pytest


@pytest.fixture(scope="session")
def uri(tmp_path_factory):
    """A database made once: its hundred migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def _a_busy_disk_is_no_server_that_is_away(monkeypatch):
    monkeypatch.setattr("raymix.track.mlflow._LAST_SECONDS", 240.0)
