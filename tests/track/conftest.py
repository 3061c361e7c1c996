import pytest


@pytest.fixture(scope="session")
def uri(tmp_path_factory):
    """A database made once: its hundred migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
