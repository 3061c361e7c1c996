"""The cache: made once, found without torch, safe under concurrency, rebuilt where damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_rows import Spec, Write, rows, silent

from raymix.core.codec import encode
from raymix.core.errors import ConfigError, DataError
from raymix.core.mixture import Domain
from raymix.data.build import build
from raymix.data.carve import Rows, carve
from raymix.data.prepare import Prepared, cached, open_table, prepare
from raymix.data.source import DatasetSpec, DataSpec


def two_domains(write: Write) -> tuple[DatasetSpec, DatasetSpec]:
    math = DatasetSpec(
        domain="math",
        path=write("math/train.jsonl", rows(20)),
        eval_path=write("math/valid.jsonl", rows(5, 100)),
        test_path=write("math/test.jsonl", rows(4, 200)),
    )
    code = DatasetSpec(domain="code", path=write("code.jsonl", rows(30, 300)), eval_split=6)
    return math, code


class TestPrepared:
    def test_what_it_says(self, spec: Spec, write: Write) -> None:
        made = build(spec(*two_domains(write)), silent)
        math, code = made.domains
        table = open_table(made.stores["math"]["train"])
        assert math == Domain("math", 20, len(table.ids), int(table.loss_tokens.sum()))
        assert (code.name, code.rows) == ("code", 24)
        assert made.without_test == ("code",)
        assert {d: sorted(s) for d, s in made.stores.items()} == {
            "math": ["eval", "test", "train"],
            "code": ["eval", "train"],
        }
        counts = made.parts[1].counts["train"]
        assert (counts.read, counts.kept, counts.dropped) == (30, 24, {"taken out for eval": 6})
        assert (
            made.parts[1].summary() == "code: train 24, eval 6 rows (train: 6 taken out for eval)"
        )

    def test_the_sample_shows_what_is_learned(self, spec: Spec, write: Write) -> None:
        made = build(spec(*two_domains(write)), silent)
        (prompt, off), (answer, on), (rest, end) = made.parts[0].sample
        assert prompt.endswith("<|im_start|>user\n0 plus 1?<|im_end|>\n<|im_start|>assistant\n")
        assert (answer, rest) == ("1<|im_end|>", "\n")
        assert (off, on, end) == (False, True, False)

    def test_tables_hold_the_rows_in_order(self, spec: Spec, write: Write) -> None:
        from transformers import AutoTokenizer

        wanted = spec(*two_domains(write))
        table = open_table(build(wanted, silent).stores["math"]["train"])
        tokenizer = AutoTokenizer.from_pretrained(wanted.tokenizer)
        assert (table.domain, table.split, table.rows) == ("math", "train", 20)
        for index in range(20):
            ids, mask = table.row(index)
            assert tokenizer.decode(ids[mask == 1].tolist()) == f"{index + 1}<|im_end|>"

    def test_truncated_and_dropped_rows_are_counted(self, spec: Spec, write: Write) -> None:
        mixed = [
            {"text": "a b c"},
            {"text": "word " * 50},
            {"messages": [{"role": "user", "content": "long " * 50}, *_answer("x")]},
        ]
        data = DatasetSpec(
            domain="d",
            path=write("a.jsonl", mixed),
            eval_path=write("b.jsonl", [{"text": "held out"}]),
        )
        counts = build(spec(data, max_length=16), silent).parts[0].counts["train"]
        assert (counts.read, counts.kept, counts.truncated) == (3, 2, 1)
        assert counts.dropped == {"no loss token within max_length": 1}

    def test_all_tokens_bear_loss_without_assistant_only(self, spec: Spec, write: Write) -> None:
        made = build(spec(*two_domains(write), assistant_only_loss=False), silent)
        table = open_table(made.stores["math"]["train"])
        assert table.loss_tokens.tolist() == (table.tokens - 1).tolist()


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


class TestKeys:
    """The fingerprint changes with whatever changes tokens, and with nothing else."""

    def test_paths_do_not_matter_but_bytes_do(self, spec: Spec, write: Write) -> None:
        def made(path: str) -> Prepared:
            held = write("held.jsonl", rows(2, 50))
            return build(spec(DatasetSpec(domain="d", path=path, eval_path=held)), silent)

        first = made(write("one.jsonl", rows(5)))
        assert made(write("moved/two.jsonl", rows(5))).fingerprint == first.fingerprint
        assert made(write("one.jsonl", rows(6))).fingerprint != first.fingerprint

    @pytest.mark.parametrize(
        "change",
        [{"max_length": 99}, {"assistant_only_loss": False}, {"seed": 7}, {"datasets": "order"}],
    )
    def test_settings_matter(self, spec: Spec, write: Write, change: dict[str, Any]) -> None:
        domains = two_domains(write)
        first = build(spec(*domains), silent)
        if "datasets" in change:
            assert build(spec(*domains[::-1]), silent).fingerprint != first.fingerprint
        else:
            assert build(spec(*domains, **change), silent).fingerprint != first.fingerprint

    def test_the_template_matters(self, spec: Spec, write: Write, tmp_path: Path) -> None:
        domains = two_domains(write)
        template = tmp_path / "other.jinja"
        template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
        one = build(spec(*domains), silent)
        other = build(spec(*domains, chat_template=str(template)), silent)
        assert one.fingerprint != other.fingerprint
        assert other.parts[0].sample[0][0] == "user: 0 plus 1?\nassistant:"

    def test_limits_that_change_no_token_do_not(self, spec: Spec, write: Write) -> None:
        domains = two_domains(write)
        build(spec(*domains), silent)
        assert cached(spec(*domains, max_overlap=0.5)) is not None

    def test_one_more_domain_leaves_the_others_tables(self, spec: Spec, write: Write) -> None:
        math, code = two_domains(write)
        one = build(spec(math), silent)
        times = Path(one.stores["math"]["train"]).stat().st_mtime_ns
        both = build(spec(math, code), silent)
        assert both.stores["math"] == one.stores["math"]
        assert Path(both.stores["math"]["train"]).stat().st_mtime_ns == times

    def test_a_changed_tokenizer_matters(
        self, spec: Spec, write: Write, tokenizer_folder: str, tmp_path: Path
    ) -> None:
        import shutil

        math, _ = two_domains(write)
        copy = tmp_path / "tokenizer"
        shutil.copytree(tokenizer_folder, copy)
        first = build(spec(math), silent)
        assert cached(spec(math, tokenizer=str(copy))) == first
        config = json.loads((copy / "tokenizer_config.json").read_text())
        (copy / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<s>"}))
        assert cached(spec(math, tokenizer=str(copy))) is None


class TestCache:
    def test_first_made_then_found_without_torch(self, spec: Spec, write: Write) -> None:
        wanted = spec(*two_domains(write))
        script = (
            "import json, sys\n"
            "from raymix.data.prepare import DataSpec, prepare\n"
            "made = prepare(DataSpec.model_validate(json.load(sys.stdin)))\n"
            "heavy = {'torch', 'transformers', 'ray', 'datasets', 'mlflow'} & set(sys.modules)\n"
            "print(json.dumps([made.fingerprint, sorted(heavy)]))\n"
        )
        said = []
        for _ in range(2):
            run = subprocess.run(
                [sys.executable, "-W", "error", "-c", script],
                input=json.dumps(wanted.model_dump(mode="json")),
                capture_output=True,
                text=True,
                check=True,
            )
            said.append((json.loads(run.stdout), run.stderr))
        (first, shown), (second, nothing) = said
        assert first == second
        assert first[1] == []
        assert "prepared code: train 24, eval 6 rows (train: 6 taken out for eval)" in shown
        assert nothing == ""

    def test_damage_is_found_and_mended(self, spec: Spec, write: Write) -> None:
        wanted = spec(*two_domains(write))
        made = build(wanted, silent)
        assert cached(wanted) == made
        whole = Path(made.stores["math"]["train"]).read_bytes()
        for damage in (whole[:-20], whole[:300] + b"\xff" + whole[301:], b""):
            Path(made.stores["math"]["train"]).write_bytes(damage)
            assert cached(wanted) is None
            assert build(wanted, silent) == made
            assert cached(wanted) == made
        Path(made.stores["code"]["eval"]).unlink()
        assert cached(wanted) is None
        assert build(wanted, silent) == made
        (Path(made.folder) / "prepared.json").write_text('{"fingerprint": ')
        assert cached(wanted) is None
        assert build(wanted, silent) == made
        left = [p.name for p in wanted.cache().rglob("*") if p.name.startswith(".tmp")]
        assert left == []

    def test_a_changed_file_is_seen_though_its_size_is_the_same(
        self, spec: Spec, write: Write
    ) -> None:
        data = DatasetSpec(domain="d", path=write("a.jsonl", rows(5)), eval_split=1)
        first = build(spec(data), silent)
        write("a.jsonl", rows(5, word="plvs"))
        assert cached(spec(data)) is None
        assert build(spec(data), silent).fingerprint != first.fingerprint

    def test_two_at_once(self, spec: Spec, write: Write) -> None:
        wanted = spec(*two_domains(write))
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(lambda _: prepare(wanted, quiet=True), range(2))
        assert one == other == cached(wanted)
        assert open_table(one.stores["math"]["train"]).rows == 20
        left = [p.name for p in wanted.cache().rglob("*") if p.name.startswith(".tmp")]
        assert left == []

    def test_it_is_plain_json(self, spec: Spec, write: Write) -> None:
        made = build(spec(*two_domains(write)), silent)
        assert json.loads((Path(made.folder) / "prepared.json").read_text()) == encode(made)

    def test_errors_of_the_child_come_back_as_they_are(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", [*rows(3), {"foo": 1}])
        data = DatasetSpec(domain="d", path=path, eval_split=1)
        with pytest.raises(
            DataError, match=r"a\.jsonl:4: this row is in no known format; its keys"
        ):
            prepare(spec(data), quiet=True)
        other = DatasetSpec(domain="d", path=write("b.jsonl", rows(3)), eval_split=1)
        with pytest.raises(DataError, match="no chat template"):
            prepare(spec(other, tokenizer=_without_template(Path(path).parent)), quiet=True)


def _without_template(folder: Path) -> str:
    from tiny_tokenizers import wrapped

    wrapped("byte_level").save_pretrained(folder / "bare")
    return str(folder / "bare")


class TestCarving:
    def made(self, count: int, hashes: list[int] | None = None) -> Rows:
        return Rows(
            ids=tuple(np.array([i], dtype=np.int32) for i in range(count)),
            masks=tuple(np.ones(1, dtype=np.uint8) for _ in range(count)),
            hashes=np.array(hashes or range(count), dtype=np.uint64),
            cut=np.zeros(count, dtype=np.bool_),
            read=count,
            dropped={},
        )

    def test_disjoint_and_complete(self) -> None:
        left, taken = carve(self.made(100), 20, 0, "eval")
        ids = [int(i[0]) for i in (*left.ids, *taken.ids)]
        assert (len(left.ids), len(taken.ids), sorted(ids)) == (80, 20, list(range(100)))
        assert left.hashes.tolist() == [int(i[0]) for i in left.ids] == sorted(left.hashes.tolist())
        assert (left.read, left.dropped) == (100, {"taken out for eval": 20})
        assert (taken.read, taken.dropped) == (20, {})

    def test_the_seed_decides(self) -> None:
        chosen = [carve(self.made(100), 20, seed, "eval")[1].hashes.tolist() for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_each_row_is_as_likely(self) -> None:
        times = np.zeros(50)
        for seed in range(400):
            times[carve(self.made(50), 10, seed, "eval")[1].hashes.astype(int)] += 1
        # 400 draws of chance 0.2: mean 80, standard deviation 8
        assert abs(times - 80).max() < 40

    def test_repeats_never_stay_behind(self) -> None:
        rows_ = self.made(40, [*range(20), *range(20)])
        left, taken = carve(rows_, 5, 0, "test")
        assert len(set(taken.hashes.tolist())) == 5
        assert not set(left.hashes.tolist()) & set(taken.hashes.tolist())
        assert left.dropped == {"taken out for test": 5, "repeats a row of test": 5}
        assert left.read == len(left.ids) + sum(left.dropped.values())

    def test_one_row_goes_the_same_way_in_any_order(self) -> None:
        forth, back = self.made(60), self.made(60, list(range(60))[::-1])
        one = carve(forth, 10, 3, "eval")[1].hashes.tolist()
        assert one == sorted(carve(back, 10, 3, "eval")[1].hashes.tolist())

    def test_fractions_are_of_the_whole(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", rows(40))
        data = DatasetSpec(domain="d", path=path, eval_split=0.25, test_split=0.25)
        counts = build(spec(data), silent).parts[0].counts
        assert {split: c.kept for split, c in counts.items()} == {
            "train": 20,
            "eval": 10,
            "test": 10,
        }

    def test_more_than_there_are(self, spec: Spec, write: Write) -> None:
        data = DatasetSpec(domain="d", path=write("a.jsonl", rows(5)), eval_split=5)
        with pytest.raises(
            DataError, match="domain 'd': eval_split asks for 5 rows, but train has 5"
        ):
            build(spec(data), silent)


class TestOverlap:
    def spec_with(self, spec: Spec, write: Write, shared: int, **settings: Any) -> DataSpec:
        train = [*rows(50), *rows(shared, 1000)]
        data = DatasetSpec(
            domain="d",
            path=write("a.jsonl", train),
            eval_path=write("b.jsonl", rows(20, 1000)),
            test_path=write("c.jsonl", rows(10, 2000)),
        )
        return spec(data, **settings)

    def test_counted_and_refused_above_the_share(self, spec: Spec, write: Write) -> None:
        wanted = self.spec_with(spec, write, 3, max_overlap=0.2)
        build(wanted, silent)
        counts = prepare(wanted).parts[0].counts
        assert (counts["eval"].overlap, counts["eval"].overlap_with) == (3, ("d",))
        assert counts["test"].overlap == 0
        message = (
            r"domain 'd': 3 of 20 eval rows \(15\.0%\) also stand in the train data of d, more "
            r"than max_overlap 0\.01 allows; .* set max_overlap to 0\.16"
        )
        with pytest.raises(DataError, match=message):
            prepare(self.spec_with(spec, write, 3))

    def test_another_domains_train_rows_count(self, spec: Spec, write: Write) -> None:
        one = DatasetSpec(
            domain="one", path=write("a.jsonl", rows(9)), eval_path=write("b.jsonl", rows(9, 100))
        )
        two = DatasetSpec(domain="two", path=write("c.jsonl", rows(9, 100)), eval_split=2)
        made = build(spec(one, two), silent)
        assert made.parts[0].counts["eval"].overlap == 7
        assert made.parts[0].counts["eval"].overlap_with == ("two",)

    def test_the_same_data_in_two_domains_is_a_warning(self, spec: Spec, write: Write) -> None:
        path = write("a.jsonl", rows(30))
        one, two = (DatasetSpec(domain=d, path=path, eval_split=5) for d in ("one", "two"))
        wanted = spec(one, two)
        build(wanted, silent)
        with pytest.warns(
            UserWarning, match=r"'one' \(25 different train rows\) and 'two' \(25\) share 25"
        ):
            made = prepare(wanted)
        # Rows are carved by content, so neither domain trains on what the other is tested on.
        assert [part.counts["eval"].overlap for part in made.parts] == [0, 0]


class TestSpec:
    def test_cache_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        data = DatasetSpec(domain="d", path="a.jsonl", eval_split=1)
        plain = DataSpec(datasets=(data,), tokenizer="t")
        monkeypatch.delenv("RAYMIX_CACHE", raising=False)
        assert plain.cache() == Path("~/.cache/raymix").expanduser()
        monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path))
        assert plain.cache() == tmp_path
        assert plain.model_copy(update={"cache_dir": "x"}).cache() == Path("x").absolute()

    def test_it_travels_as_json(self) -> None:
        data = DatasetSpec(
            domain="d", path="a", eval_split=0.5, test_split=3, columns={"text": "b"}
        )
        whole = DataSpec(datasets=(data,), tokenizer="t")
        assert DataSpec.model_validate_json(whole.model_dump_json()) == whole

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"domain": "a b"}, "domain 'a b' must be made of letters"),
            ({"type": "alpacca"}, "unknown type 'alpacca'"),
            ({"eval_split": None}, "domain 'd' has no eval data; set eval_path"),
            ({"eval_split": 0}, "a number of rows .1 or more. or a fraction .*, got 0"),
            ({"eval_split": 1.5}, "a fraction between 0 and 1, got 1.5"),
            ({"test_split": True}, "a fraction between 0 and 1, got True"),
            ({"eval_path": "b"}, "both eval_path and eval_split: 1"),
            ({"path": None}, "needs either path or dataset_info"),
            ({"dataset_info": "i#x"}, "needs either path or dataset_info"),
            ({"dataset_info": "i#x", "path": None, "type": "text"}, "given by its dataset_info"),
        ],
    )
    def test_entries_that_make_no_sense(self, entry: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            DatasetSpec(**{"domain": "d", "path": "a", "eval_split": 1, **entry})

    def test_names_must_differ(self) -> None:
        data = DatasetSpec(domain="d", path="a", eval_split=1)
        with pytest.raises(ConfigError, match="domain 'd' stands 2 times in datasets"):
            DataSpec(datasets=(data, data), tokenizer="t")
        with pytest.raises(ConfigError, match="datasets is empty"):
            DataSpec(datasets=(), tokenizer="t")


@pytest.mark.real_data
def test_every_real_row_learns_its_answer_and_no_more(spec: Spec, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shared = Path(__file__).parents[3] / "shared"
    model, sft = shared / "models" / "lab-base-1m", shared / "data" / "sft"
    if not model.is_dir() or not sft.is_dir():
        pytest.skip(f"the real data are not at {shared}")
    names = ("math", "code", "reasoning", "general", "classify")
    domains = [
        DatasetSpec(
            domain=name,
            path=str(sft / name / "valid.jsonl"),
            eval_path=str(sft / name / "test.jsonl"),
        )
        for name in names
    ]
    made = build(spec(*domains, tokenizer=str(model), max_length=100_000), silent)
    assert made.warnings == ()
    assert [part.counts["eval"].overlap for part in made.parts] == [0] * 5
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name in names:
        table = open_table(made.stores[name]["train"])
        lines = (sft / name / "valid.jsonl").read_text("utf-8").splitlines()
        answers = [json.loads(line)["messages"][-1]["content"] for line in lines]
        learned = [ids[mask == 1].tolist() for ids, mask in map(table.row, range(table.rows))]
        assert tokenizer.batch_decode(learned) == [f"{answer}<|eos|>" for answer in answers]
