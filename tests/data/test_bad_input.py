"""Bad input: one clear error that names the file, the line and the value, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_rows import Spec, Write, rows, silent
from tiny_tokenizers import TEMPLATES

from raymix.core.errors import ConfigError, DataError
from raymix.data.build import build
from raymix.data.prepare import cached
from raymix.data.source import DatasetSpec


def domain(path: str, **settings: Any) -> DatasetSpec:
    return DatasetSpec(domain="math", **{"path": path, "eval_split": 1, **settings})


class TestFoundWithoutReading:
    """Errors that `cached` raises: no child process is started."""

    def test_missing_file(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        write("data/train.jsonl", rows(3))
        message = (
            rf"domain 'math': no file or folder '{tmp_path}/data/trian\.jsonl' "
            r"\(did you mean 'train\.jsonl'\?\)"
        )
        with pytest.raises(DataError, match=message):
            cached(spec(domain(f"{tmp_path}/data/trian.jsonl")))
        with pytest.raises(
            DataError, match=r"no file or folder '.*/dta' \(did you mean 'data'\?\)"
        ):
            cached(spec(domain(f"{tmp_path}/dta/train.jsonl")))

    def test_a_relative_path_beside_what_is_there_is_no_hub_id(
        self, spec: Spec, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("data/math/train.jsonl", rows(3))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"'data/maths' \(did you mean 'math'\?\)"):
            cached(spec(domain("data/maths")))
        with pytest.raises(DataError, match=r"no file or folder 'math\.jsonl'"):
            cached(spec(domain("math.jsonl")))

    def test_glob_that_matches_nothing(self, spec: Spec, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"domain 'math': '.*/\*\.jsonl' matches no file"):
            cached(spec(domain(f"{tmp_path}/*.jsonl")))

    def test_empty_file(self, spec: Spec, write: Write) -> None:
        with pytest.raises(DataError, match=r"domain 'math': .*a\.jsonl is empty"):
            cached(spec(domain(write("a.jsonl", []))))

    def test_unknown_ending(self, spec: Spec, write: Write) -> None:
        with pytest.raises(DataError, match=r"cannot read .*a\.txt: known endings are \.jsonl"):
            cached(spec(domain(write("a.txt", rows(3)))))

    def test_split_of_a_single_file(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", rows(3))
        with pytest.raises(DataError, match=r"one file without splits, .*'valid'; set eval_path"):
            cached(spec(domain(path, eval_split="valid")))

    def test_unknown_split_of_a_folder(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        for name in ("train", "validation"):
            write(f"{name}.jsonl", rows(3))
        message = r"no split 'valdation' \(did you mean 'validation'\?\); its splits: train, valid"
        with pytest.raises(DataError, match=message):
            cached(spec(domain(str(tmp_path), eval_split="valdation")))

    def test_unknown_split_of_a_saved_data_set(self, spec: Spec, tmp_path: Path) -> None:
        import datasets

        one = datasets.Dataset.from_list(rows(3))
        one.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": one}).save_to_disk(tmp_path / "dict")
        with pytest.raises(DataError, match="no split 'dev'; its splits: train"):
            cached(spec(domain(str(tmp_path / "dict"), eval_split="dev")))
        with pytest.raises(DataError, match="one saved data set without splits, so no split 'dev'"):
            cached(spec(domain(str(tmp_path / "one"), eval_split="dev")))

    def test_missing_tokenizer(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        data = domain(write("a.jsonl", rows(3)))
        (tmp_path / "model").mkdir()
        with pytest.raises(ConfigError, match=r"tokenizer: no file or folder '.*/modle' \(did you"):
            cached(spec(data, tokenizer=str(tmp_path / "modle")))
        with pytest.raises(ConfigError, match=r"tokenizer: the folder '.*/model' holds no tok"):
            cached(spec(data, tokenizer=str(tmp_path / "model")))

    def test_missing_template_file(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        data = domain(write("a.jsonl", rows(3)))
        with pytest.raises(ConfigError, match=r"chat_template: no file or folder '.*/x\.jinja'"):
            cached(spec(data, chat_template=str(tmp_path / "x.jinja")))


class TestFoundWhileReading:
    def refused(self, spec: Spec, data: DatasetSpec, message: str, **settings: Any) -> None:
        wanted = spec(data, **settings)
        with pytest.raises(DataError, match=message):
            build(wanted, silent)
        left = list((wanted.cache() / "tables").iterdir())
        assert left == []

    def test_unreadable_json_line(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(rows(1)[0]) + '\n{"prompt": "2+2?"\n', encoding="utf-8")
        self.refused(spec, domain(str(path)), r"a\.jsonl:2: not JSON \(Expecting ',' delimiter at ")

    def test_unreadable_json_list(self, spec: Spec, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text('[\n {"prompt": "2+2?", "completion": "4"},\n {"prompt" "x"}\n]')
        self.refused(spec, domain(str(path)), r"a\.json:3: not JSON \(Expecting ':' delimiter")

    def test_row_that_is_no_object(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", [*rows(2), [1, 2]])
        self.refused(spec, domain(path), r"a\.jsonl:3: a row must be a JSON object, got \[1, 2\]")

    def test_only_empty_lines(self, spec: Spec, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("\n\n")
        self.refused(spec, domain(str(tmp_path / "a.jsonl")), "'math': its train data have no rows")

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
    def test_other_bytes_than_utf8(self, spec: Spec, tmp_path: Path, name: str) -> None:
        good, bad = '{"prompt": "caf\u00e9", "completion": "4"}', b'{"prompt": "caf\xe9"}'
        start = b"[\n" if name == "a.json" else b"prompt,completion\n" if name == "a.csv" else b"\n"
        (tmp_path / name).write_bytes(start + good.encode() + b"\n" + bad + b"\n")
        message = rf"{name}:3: byte 0xe9 at column 16 is not UTF-8; save the file as UTF-8"
        self.refused(spec, domain(str(tmp_path / name)), message)

    def test_csv_row_of_another_width(self, spec: Spec, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("prompt,completion\na,b\nc,d,e\n")
        message = r"a\.csv:3: the row does not have the header's 2 cells"
        self.refused(spec, domain(str(tmp_path / "a.csv")), message)
        (tmp_path / "a.csv").write_text('prompt,completion\na,"b\n')
        self.refused(spec, domain(str(tmp_path / "a.csv")), r"a\.csv:2: not CSV")

    def test_damaged_parquet(self, spec: Spec, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(rows(5)), tmp_path / "a.parquet")
        whole = (tmp_path / "a.parquet").read_bytes()
        (tmp_path / "a.parquet").write_bytes(whole[:-9])
        message = r"a\.parquet: not Parquet, or damaged"
        self.refused(spec, domain(str(tmp_path / "a.parquet")), message)

    def test_unknown_format(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", [*rows(2), {"question": "2+2?", "reply": "4"}])
        message = (
            r"a\.jsonl:3: this row is in no known format; its keys: question, reply; the formats: "
            r"messages \(messages\), sharegpt \(conversations\), prompt_completion \(prompt \+ "
        )
        self.refused(spec, domain(path), message)

    def test_no_assistant_and_empty_assistant(self, spec: Spec, write: Write) -> None:
        user = {"messages": [{"role": "user", "content": "2+2?"}]}
        path = write("a.jsonl", [*rows(1), user])
        self.refused(spec, domain(path), r"a\.jsonl:2: no assistant turn to learn from")
        path = write("a.jsonl", [*rows(1), {"prompt": "2+2?", "completion": ""}])
        self.refused(spec, domain(path), r"a\.jsonl:2: the assistant's turn is empty")

    def test_bad_rows_of_eval_are_named_too(self, spec: Spec, write: Write) -> None:
        data = domain(
            write("a.jsonl", rows(3)), eval_split=None, eval_path=write("b.jsonl", [{"foo": 1}])
        )
        self.refused(spec, data, r"b\.jsonl:1: this row is in no known format")

    def test_all_rows_truncated_away(self, spec: Spec, write: Write) -> None:
        message = (
            r"domain 'math': none of its 3 train rows has a loss token within max_length 8 "
            r"\(3 cut off\); raise max_length"
        )
        self.refused(spec, domain(write("a.jsonl", rows(3))), message, max_length=8)

    def test_template_that_fails(self, spec: Spec, write: Write) -> None:
        row = {"prompt": "2+2?", "completion": "4", "system": "Be brief."}
        path = write("a.jsonl", [*rows(1), row])
        message = r"a\.jsonl:2: the chat template fails: System role not supported"
        template = str(TEMPLATES / "gemma.jinja")
        self.refused(spec, domain(path), message, chat_template=template)

    def test_tokenizer_that_cannot_be_loaded(
        self, spec: Spec, write: Write, tmp_path: Path
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "tokenizer.json").write_text("{")
        wanted = spec(domain(write("a.jsonl", rows(3))), tokenizer=str(tmp_path / "model"))
        with pytest.raises(DataError, match=r"cannot load the tokenizer '.*/model'"):
            build(wanted, silent)

    def test_cache_that_cannot_be_written(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        wanted = spec(domain(write("a.jsonl", rows(3))), cache_dir=str(tmp_path / "file"))
        with pytest.raises(DataError, match=r"cannot prepare the data in .*/file: "):
            build(wanted, silent)
