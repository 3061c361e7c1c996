import pytest

from raymix.testing.suite import write_suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("written") / "suite", 3)
