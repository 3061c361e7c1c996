"""What a node must fulfil: seen on this one, with files and packages that are and are not there."""

import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from raymix.cluster.nodes import (
    Terms,
    lacks_tables,
    local_files,
    refuse,
    unfulfilled,
    versions,
)
from raymix.core.codec import decode, encode
from raymix.core.errors import ClusterError
from raymix.data.fetch import content_of
from raymix.train.config import Setup, Training


@pytest.fixture
def setup(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "math.arrow").write_bytes(b"12345")
    (tmp_path / "chat.jinja").write_text("{{ }}")
    return Setup(
        models={"target": str(model), "small": "org/on-the-hub"},
        training=Training(),
        stores={"math": {"train": str(tmp_path / "math.arrow")}},
        output_dir=str(tmp_path / "study"),
        chat_template=str(tmp_path / "chat.jinja"),
        contents={str(tmp_path / "math.arrow"): content_of(tmp_path / "math.arrow")},
    )


@pytest.fixture
def asked(setup):
    folder = Path(setup.output_dir)
    folder.mkdir()
    (folder / ".raymix-shared").write_text("mark")
    return Terms("head", versions(), local_files(setup), setup.output_dir, "mark", setup.contents)


def test_versions_are_those_that_are_installed():
    found = versions()
    assert set(found) == {"python", "ray", "torch", "transformers", "raymix"}
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["raymix"].startswith("0.1.0 (source ")


def test_files_are_what_workers_read_and_hub_ids_are_none(setup, tmp_path):
    assert local_files(setup) == {
        "model_name_or_path": (-1, str(tmp_path / "model")),
        "chat_template": (5, str(tmp_path / "chat.jinja")),
    }


def test_a_node_like_the_drivers_fulfils_all_and_leaves_nothing(asked):
    assert decode(Terms, encode(asked)) == asked
    before = sorted(Path(asked.folder).iterdir())
    assert unfulfilled(asked) == []
    assert sorted(Path(asked.folder).iterdir()) == before


def test_another_version_is_named_with_both(asked):
    other = replace(asked, versions={**asked.versions, "torch": "1.0", "python": "2.7"})
    assert unfulfilled(other) == [
        f"python is {platform.python_version()} there and 2.7 where the study was started",
        f"torch is {metadata.version('torch')} there and 1.0 where the study was started",
    ]


def test_what_is_not_there_is_named_by_its_key(asked, tmp_path):
    (tmp_path / "model").rmdir()
    (tmp_path / "chat.jinja").write_text("{{}}")
    assert unfulfilled(asked) == [
        f"it does not see model_name_or_path: '{tmp_path / 'model'}'",
        f"it sees another file for chat_template at '{tmp_path / 'chat.jinja'}'",
    ]


@pytest.mark.parametrize("lack", ["another size", "none"])
def test_prepared_data_that_are_not_there_are_fetched_and_no_reason_to_refuse(
    asked, tmp_path, lack
):
    assert not lacks_tables(asked)
    path = tmp_path / "math.arrow"
    path.unlink() if lack == "none" else path.write_bytes(b"1234")
    assert lacks_tables(asked)
    assert unfulfilled(asked) == []


def test_a_folder_of_the_same_name_is_not_the_same_folder(asked):
    says = f"it does not see study.output_dir '{asked.folder}'"
    assert unfulfilled(replace(asked, mark="another")) == [says]
    (Path(asked.folder) / ".raymix-shared").unlink()
    assert unfulfilled(asked) == [says]


def test_a_storage_that_does_not_exist_is_said_to_be_out_of_reach(asked):
    (said,) = unfulfilled(replace(asked, folder="nonsense://bucket/study"))
    assert said.startswith("it cannot reach study.output_dir 'nonsense://bucket/study': ValueError")


def test_all_nodes_with_something_wrong_are_in_the_error():
    refuse({"10.0.0.1": []})
    with pytest.raises(ClusterError) as error:
        refuse(
            {"10.0.0.1": [], "10.0.0.2": ["it is old", "it is blind"], "10.0.0.3": ["it is late"]}
        )
    said = "node 10.0.0.2: it is old; node 10.0.0.2: it is blind; node 10.0.0.3: it is late"
    assert said in str(error.value)
