"""Where rows come from: files, globs, folders, saved data sets, dataset_info.json."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymix.core.errors import ConfigError, DataError
from raymix.data.formats import Layout, parse
from raymix.data.keys import plans
from raymix.data.llamafactory import read_entry
from raymix.data.locate import Disk, Files, Hub, Place, Plan
from raymix.data.messages import Example, Message
from raymix.data.rows import read_rows
from raymix.data.source import DatasetSpec, DataSpec

TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
ROWS: list[dict[str, Any]] = [{"messages": TALK, "source": str(i)} for i in range(3)]
MEANT = Example((Message("user", "2+2?"), Message("assistant", "4", loss=True)))


def jsonl(path: Path, rows: list[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def read(source: Any) -> list[Example]:
    return [parse(row, Layout()) for _, row in read_rows(source)]


def plan_of(**entry: Any) -> Plan:
    dataset = DatasetSpec(domain="d", **{"eval_split": 1, **entry})
    return plans(DataSpec(datasets=(dataset,), tokenizer="t"))[0]


class TestFiles:
    def test_jsonl(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "a.jsonl")
        assert read(Place(str(path)).find("train")) == [MEANT] * 3
        places = [place for place, _ in read_rows(Files((path,)))]
        assert places == [f"{path}:1", f"{path}:2", f"{path}:3"]

    def test_jsonl_with_byte_order_mark_empty_lines_and_windows_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        line = json.dumps(ROWS[0]).encode()
        path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
        found = list(read_rows(Files((path,))))
        assert [place for place, _ in found] == [f"{path}:1", f"{path}:3"]

    def test_json_list_and_json_lines(self, tmp_path: Path) -> None:
        listed = tmp_path / "a.json"
        listed.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
        lines = jsonl(tmp_path / "b.json")
        assert read(Files((listed, lines))) == [MEANT] * 6

    def test_parquet(self, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
        assert read(Place(str(tmp_path / "a.parquet")).find("train")) == [MEANT] * 3

    def test_parquet_fills_keys_that_a_turn_lacks(self, tmp_path: Path) -> None:
        call = {"function": {"name": "add", "arguments": "{}"}}
        turns = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]}, TALK[1]]
        pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
        (example,) = read(Files((tmp_path / "a.parquet",)))
        assert [m.extra for m in example.messages] == [{}, {"tool_calls": [call]}, {}]

    def test_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["instruction", "input", "output"])
            writer.writeheader()
            writer.writerow({"instruction": "2+2?", "input": "", "output": "4"})
            writer.writerow({"instruction": "two\nlines", "input": "", "output": "x" * 200_000})
        first, second = read(Place(str(path)).find("train"))
        assert first == MEANT
        assert second.messages[0].content == "two\nlines"

    def test_glob(self, tmp_path: Path) -> None:
        for name in ("b/two.jsonl", "a/one.jsonl", "a/three.txt"):
            jsonl(tmp_path / name)
        found = Place(str(tmp_path / "**" / "*.jsonl")).find("train")
        assert found == Files((tmp_path / "a/one.jsonl", tmp_path / "b/two.jsonl"))

    def test_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        jsonl(tmp_path / "a.jsonl")
        assert Place("~/a.jsonl").find("train") == Files((tmp_path / "a.jsonl",))


class TestFolders:
    def test_files_named_for_their_split(self, tmp_path: Path) -> None:
        jsonl(tmp_path / "train.jsonl")
        jsonl(tmp_path / "data" / "valid-00001-of-00002.jsonl")
        jsonl(tmp_path / "data" / "valid-00000-of-00002.jsonl")
        found = plan_of(path=str(tmp_path), eval_split="valid")
        assert found.train == Files((tmp_path / "train.jsonl",))
        names = [path.name for path in found.eval.paths]  # type: ignore[union-attr]
        assert names == ["valid-00000-of-00002.jsonl", "valid-00001-of-00002.jsonl"]
        assert found.test is None

    def test_data_files(self, tmp_path: Path) -> None:
        jsonl(tmp_path / "x.jsonl")
        jsonl(tmp_path / "y.jsonl")
        found = plan_of(
            path=str(tmp_path), data_files={"train": "x.jsonl", "dev": ("y*",)}, eval_split="dev"
        )
        assert found.train == Files((tmp_path / "x.jsonl",))
        assert found.eval == Files((tmp_path / "y.jsonl",))

    def test_saved_data_sets(self, tmp_path: Path) -> None:
        import datasets

        one = datasets.Dataset.from_list(ROWS)
        one.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": one, "dev": one.select([0])}).save_to_disk(tmp_path / "dict")
        assert read(Place(str(tmp_path / "one")).find("train")) == [MEANT] * 3
        found = plan_of(
            path=str(tmp_path / "dict"), eval_split="dev", test_path=str(tmp_path / "one")
        )
        assert isinstance(found.train, Disk)
        assert [len(read(s)) for s in (found.train, found.eval, found.test)] == [3, 1, 3]


class TestHub:
    @pytest.mark.parametrize("name", ["org/data-set_1.0", "squad"])
    def test_what_looks_like_an_id_and_is_no_path(self, name: str) -> None:
        found = Place(name, "python", "main").find("train")
        assert found == Hub(name, "train", "python", "main")


class TestDatasetInfo:
    def info(self, folder: Path, **entries: Any) -> str:
        (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
        return str(folder / "dataset_info.json")

    def example(self, folder: Path, entry: dict[str, Any], row: Any) -> Example:
        jsonl(folder / "a.jsonl", [row])
        info = self.info(folder, it={"file_name": "a.jsonl", **entry})
        place, layout, split = read_entry(f"{info}#it")
        ((_, found),) = read_rows(place.find(split))
        return parse(found, layout)

    def test_alpaca_without_columns(self, tmp_path: Path) -> None:
        row = {"instruction": "2+2?", "input": "", "output": "4", "system": "not used"}
        assert self.example(tmp_path, {}, row) == MEANT

    def test_alpaca_with_columns_uses_no_others(self, tmp_path: Path) -> None:
        entry = {"columns": {"prompt": "q", "response": "a", "system": "s", "history": "h"}}
        row = {"q": "2+2?", "a": "4", "s": "Be brief.", "h": [["1+1?", "2"]], "input": "not used"}
        assert [m.content for m in self.example(tmp_path, entry, row).messages] == [
            "Be brief.",
            "1+1?",
            "2",
            "2+2?",
            "4",
        ]

    def test_text(self, tmp_path: Path) -> None:
        entry = {"columns": {"prompt": "body"}}
        assert self.example(tmp_path, entry, {"body": "once"}) == Example(text="once")

    def test_sharegpt_with_default_tags(self, tmp_path: Path) -> None:
        turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
        row = {"conversations": turns, "system": "not used"}
        assert self.example(tmp_path, {"formatting": "sharegpt"}, row) == MEANT

    def test_sharegpt_with_tags(self, tmp_path: Path) -> None:
        entry = {
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": {
                "role_tag": "who",
                "content_tag": "what",
                "user_tag": "Q",
                "assistant_tag": "A",
            },
        }
        row = {"talk": [{"who": "Q", "what": "2+2?"}, {"who": "A", "what": "4"}]}
        assert self.example(tmp_path, entry, row) == MEANT

    def test_openai_messages(self, tmp_path: Path) -> None:
        entry = {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        assert self.example(tmp_path, entry, {"messages": TALK}) == MEANT

    def test_hub_entry(self, tmp_path: Path) -> None:
        info = self.info(tmp_path, it={"hf_hub_url": "org/set", "subset": "en", "split": "sft"})
        found = plan_of(dataset_info=f"{info}#it")
        assert found.train == Hub("org/set", "sft", "en")
        assert found.layout.type == "alpaca"

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"file_name": "a.jsonl", "ranking": True}, "sets ranking, which raymix refuses"),
            ({"script_url": "x"}, "sets script_url"),
            ({"file_name": "a.jsonl", "num_samples": 5}, "sets num_samples"),
            ({"ms_hub_url": "x"}, "neither file_name nor hf_hub_url"),
            ({"file_name": "a.jsonl", "formatting": "odd"}, "unknown formatting 'odd'"),
            (
                {"file_name": "a", "columns": {"images": "i"}},
                "column images; raymix trains on text",
            ),
        ],
    )
    def test_entries_that_raymix_cannot_use(
        self, tmp_path: Path, entry: dict[str, Any], message: str
    ) -> None:
        info = self.info(tmp_path, it=entry)
        with pytest.raises(ConfigError, match=message):
            read_entry(f"{info}#it")

    def test_unknown_entry_and_file(self, tmp_path: Path) -> None:
        info = self.info(tmp_path, alpaca_en={"file_name": "a.jsonl"})
        with pytest.raises(
            ConfigError, match=r"no entry 'alpaca_n' \(did you mean 'alpaca_en'\?\)"
        ):
            read_entry(f"{info}#alpaca_n")
        with pytest.raises(ConfigError, match="name an entry"):
            read_entry(info)
        with pytest.raises(ConfigError, match=r"no file or folder '.*dataset_inf.json' \(did you"):
            read_entry(f"{tmp_path}/dataset_inf.json#x")
        (tmp_path / "dataset_info.json").write_text("{", encoding="utf-8")
        with pytest.raises(DataError, match=r"cannot read .*dataset_info\.json"):
            read_entry(f"{info}#x")
