"""Exports read back: the shares of rows must be those that the study realised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import Drawn
from raymix.core.mixture import Budget, Domain, Mixture, Unit
from raymix.data.formats import Layout
from raymix.data.locate import Disk, Files, Hub, Plan
from raymix.report.best import FILE, Best, dump_best, read_best, write_best
from raymix.report.export import TARGETS, export, write
from raymix.report.recipe import Recipe
from raymix.train.config import Training

ROWS = {"math": 250, "code": 37, "chat": 0, "poems": 60}
POOLS = {"math": 100, "code": 300, "chat": 600, "poems": 60}
TOTAL = sum(ROWS.values())


def drawn(domain: str) -> Drawn:
    share = ROWS[domain] / TOTAL
    rows, pool = ROWS[domain], POOLS[domain]
    return Drawn(domain, share, share, rows, min(rows, pool), rows / pool, 10 * rows, 5 * rows)


BEST = Best(
    mixture=Mixture.of({name: rows / TOTAL for name, rows in ROWS.items()}),
    budget=Budget(TOTAL),
    trial="tpe-012",
    objective={"aggregate": "mean", "eval": 1.25},
    losses={"eval": {"math": 1.0, "code": 1.5}},
    seeds=(1000, 1001),
    realised=tuple(drawn(name) for name in ROWS),
    verdict="tpe-012 is better than uniform by 0.1 nats per token.",
    fingerprint="0123456789abcdef",
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One file of messages per domain; each row names its domain and number."""
    paths = {}
    for name, pool in POOLS.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        rows = (
            {
                "messages": [
                    {"role": "user", "content": name},
                    {"role": "assistant", "content": str(i)},
                ]
            }
            for i in range(pool)
        )
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def recipe(files: dict[str, Path], best: Best = BEST, kind: str | None = "messages") -> Recipe:
    domains = tuple(Domain(name, pool, 10 * pool, 5 * pool) for name, pool in POOLS.items())
    plans = tuple(
        Plan(name, Layout(kind), Files((files[name],)), 20 if name == "code" else Files(()), None)
        for name in POOLS
    )
    training = Training(packing=True, use_peft=True).model_dump(mode="json")
    return Recipe(best, domains, plans, "org/model", training, seed=3)


def length(split: str) -> int:
    """Rows of `train[:n]`."""
    return int(re.fullmatch(r"train\[:(\d+)\]", split)[1])


def test_passes_of_each_domain(files):
    portions = {p.domain: p for p in recipe(files).portions()}
    assert portions["math"].counts == (100, 100, 50)
    assert portions["code"].counts == (37,)
    assert portions["poems"].counts == (60,)
    assert "chat" not in portions


def test_without_realised_rows_they_follow_from_the_budget(files):
    shares = Mixture.of({"math": 0.5, "code": 0.25, "chat": 0.25, "poems": 0.0})
    plain = recipe(files, Best(shares, Budget(101)))
    assert {p.domain: p.rows for p in plain.portions()} == {"math": 51, "code": 25, "chat": 25}
    # 1000 loss tokens at 5 a row are 200 rows.
    tokens = recipe(files, Best(shares, Budget(1000, Unit.LOSS_TOKENS)))
    assert {p.domain: p.rows for p in tokens.portions()} == {"math": 100, "code": 50, "chat": 50}
    assert "on average" in tokens.header(())


def test_trl_reads_back(files):
    (text,) = export(recipe(files), "trl").values()
    body = yaml.safe_load(text)
    rows: Counter[str] = Counter()
    for entry in body["datasets"]:
        assert set(entry) <= {"path", "name", "data_dir", "data_files", "split", "columns"}
        assert entry["path"] == "json"
        rows[Path(entry["data_files"]).stem] += length(entry["split"])
    assert rows == {name: count for name, count in ROWS.items() if count}
    assert body["num_train_epochs"] == 1
    assert body["lora_r"] == 16
    assert body["warmup_steps"] == 0.03
    assert "bf16" not in body, "None is left to TRL"
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("math: share 0.7205, 250 of 347 rows, 2.50 epochs of 100" in c for c in comments)
    assert any("left out: chat" in c for c in comments)
    assert any("`fraction` is not used" in c for c in comments)
    assert any("raymix took the rows of eval (20) out of 'code'" in c for c in comments)


def test_trl_entries_load(files):
    """The entries do what TRL does with them: load_dataset, joined."""
    datasets = pytest.importorskip("datasets")
    body = yaml.safe_load(export(recipe(files), "trl")["trl.yaml"])
    cache = str(files["math"].parent / "cache")
    parts = [datasets.load_dataset(**entry, cache_dir=cache) for entry in body["datasets"]]
    names = Counter(row["messages"][0]["content"] for part in parts for row in part)
    assert names == {name: count for name, count in ROWS.items() if count}


def test_axolotl_reads_back(files):
    body = yaml.safe_load(export(recipe(files), "axolotl")["axolotl.yaml"])
    rows: Counter[str] = Counter()
    for entry in body["datasets"]:
        rows[Path(entry["path"]).stem] += length(entry["split"])
        assert entry["type"] == "chat_template"
        assert entry["field_messages"] == "messages"
    assert rows == {name: count for name, count in ROWS.items() if count}
    assert body["num_epochs"] == 1
    assert body["dataset_exact_deduplication"] is False, "copies must stay copies"
    assert body["warmup_ratio"] == 0.03
    assert (body["sequence_len"], body["sample_packing"], body["bf16"]) == (1024, True, "auto")
    assert body["lora_target_linear"] is True


def test_llamafactory_reads_back(files):
    found = export(recipe(files), "llamafactory")
    body, info = yaml.safe_load(found["llamafactory.yaml"]), json.loads(found["dataset_info.json"])
    names = body["dataset"].split(",")
    assert names == list(info)
    rows: Counter[str] = Counter()
    for name in names:
        rows[Path(info[name]["file_name"]).stem] += info[name]["num_samples"]
        assert info[name]["num_samples"] <= POOLS[Path(info[name]["file_name"]).stem]
        assert info[name]["formatting"] == "sharegpt"
    assert rows == {name: count for name, count in ROWS.items() if count}
    assert names == ["math", "math-pass-2", "math-pass-3", "code", "poems"]
    assert (body["mix_strategy"], body["num_train_epochs"]) == ("concat", 1)
    assert body["neat_packing"] is True
    assert body["lora_target"] == "all"


def test_hf_script_makes_the_mixture(files, tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "out"
    (script,) = write(export(recipe(files), "hf"), folder)
    count = """
import json, runpy, sys
from collections import Counter
data = runpy.run_path(sys.argv[1])["mixture"]()
names = [row["messages"][0]["content"] for row in data]
rows = Counter((row["messages"][0]["content"], row["messages"][1]["content"]) for row in data)
print(json.dumps([names, [[*key, n] for key, n in rows.items()]]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", count, str(script)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    names, rows = json.loads(done.stdout.splitlines()[-1])
    assert Counter(names) == {name: n for name, n in ROWS.items() if n}
    # Two and a half epochs: every row twice, half of them three times.
    assert Counter(n for name, _, n in rows if name == "math") == {2: 50, 3: 50}
    assert Counter(n for name, _, n in rows if name == "code") == {1: 37}
    # Mixed throughout: halfway, each domain has had about half of its rows.
    half = Counter(names[: TOTAL // 2])
    assert abs(half["math"] - 125) < 25
    # The remainder is not just the file's first rows.
    thirds = sorted(int(i) for name, i, n in rows if name == "math" and n == 3)
    assert thirds != list(range(50))


def test_yaml_is_what_train_reads(files, tmp_path):
    (path,) = write(export(recipe(files), "yaml"), tmp_path)
    assert path.name == FILE
    assert read_best(path) == BEST
    assert read_best(tmp_path) == BEST


@pytest.mark.parametrize(
    "kind", ["messages", "sharegpt", "prompt_completion", "alpaca", "text", None]
)
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_format_to_every_target(files, target, kind):
    for name, text in export(recipe(files, kind=kind), target).items():
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif name.endswith(".json"):
            json.loads(text)
        else:
            assert yaml.safe_load(text)
        assert str(Path.home()) not in text


def test_what_a_target_cannot_do_is_said(files):
    assert (
        "does not read sharegpt rows ('math')"
        in export(recipe(files, kind="sharegpt"), "trl")["trl.yaml"]
    )
    assert "own prompt format" in export(recipe(files, kind="alpaca"), "axolotl")["axolotl.yaml"]
    assert "stage pt" in export(recipe(files, kind="text"), "llamafactory")["llamafactory.yaml"]


def test_hub_and_folders(tmp_path):
    best = Best(Mixture.of({"web": 0.5, "many": 0.25, "disk": 0.25}), Budget(40))
    many = Files((tmp_path / "a.parquet", tmp_path / "b.parquet"))
    disk = Disk(tmp_path / "disk", (tmp_path / "disk" / "data-0.arrow",))
    plans = (
        Plan(
            "web",
            Layout("messages"),
            Hub("org/set", "train_sft", "en", "abc123"),
            Hub("x", "test"),
            None,
        ),
        Plan("many", Layout("alpaca", {"output": "answer"}), many, many, None),
        Plan("disk", Layout("text"), disk, disk, 0.1),
    )
    domains = tuple(Domain(plan.domain, 15, 1, 1) for plan in plans)
    found = Recipe(best, domains, plans, "m", {})
    trl = export(found, "trl")["trl.yaml"]
    entries = yaml.safe_load(trl)["datasets"]
    assert entries[:2] == [
        {"path": "org/set", "name": "en", "split": "train_sft[:15]"},
        {"path": "org/set", "name": "en", "split": "train_sft[:5]"},
    ]
    assert "newest commit of 'web', raymix took abc123" in trl
    assert "rename the columns of 'many': answer to output" in trl
    assert entries[2]["data_files"] == [str(path) for path in many.paths]
    assert entries[3]["path"] == "arrow"
    assert "save_to_disk" in trl
    assert "test (0.1) out of 'disk'" in trl
    axolotl = yaml.safe_load(export(found, "axolotl")["axolotl.yaml"])["datasets"]
    assert axolotl[2]["path"] == str(tmp_path)
    assert axolotl[2]["data_files"] == [str(path) for path in many.paths]
    info = json.loads(export(found, "llamafactory")["dataset_info.json"])
    assert info["web"]["revision"] == "abc123"
    assert info["many"]["columns"]["response"] == "answer"
    script = export(found, "hf")["mixture.py"]
    assert "'revision': 'abc123'" in script


def test_unknown_targets_are_refused(files):
    with pytest.raises(
        ConfigError, match=r"cannot export to 'axolotel' \(did you mean 'axolotl'\?\)"
    ):
        export(recipe(files), "axolotel")


def test_recipes_that_do_not_fit_are_refused(files):
    with pytest.raises(MixtureError, match="unknown domain 'law'"):
        recipe(files, Best(Mixture.of({"law": 1.0}), Budget(1)))
    with pytest.raises(ConfigError, match="has no budget"):
        recipe(files, Best(BEST.mixture))
    good = recipe(files)
    with pytest.raises(ConfigError, match="differ"):
        Recipe(BEST, good.domains, good.plans[:2], "m", {})


# ---- best_mixture.yaml ----


def test_best_mixture_is_plain_yaml(tmp_path):
    text = dump_best(BEST)
    assert text.startswith("# Written by raymix. The weights are shares of the budget, in examples")
    plain = yaml.safe_load(text)
    assert plain["mixture"]["chat"] == 0.0
    assert plain["budget"] == {"amount": TOTAL, "unit": "examples"}
    assert plain["seeds"] == [1000, 1001]
    assert read_best(write_best(BEST, tmp_path)) == BEST
    assert read_best(write_best(BEST, tmp_path / "mine.yaml")) == BEST


def test_a_mixture_alone_will_do(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mixture: {math: 0.5, code: 0.5}\n")
    assert read_best(path) == Best(Mixture.of({"math": 0.5, "code": 0.5}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixture: {math: 0.5, code: 0.6}", r"weights must sum to 1, got 1\.1"),
        ("mixture: {math: half}", "mixture.math must be a number, got 'half'"),
        ("mixture: [0.5, 0.5]", "has no 'mixture:'"),
        ("weights: {math: 1}", "has no 'mixture:'"),
        ("", "has no 'mixture:'"),
        ("mixture: {math: 1}\nbudgit: 3", r"unknown key 'budgit' \(did you mean 'budget'\?\)"),
        ("mixture: {math: 1}\nbudget: {amount: 3, unit: rows}", "rows"),
        ("mixture: {math: 1}\nbudget: {amount: 3}", "unit"),
        ("mixture: {math: 1}\nrealised: [{domain: math}]", "asked"),
        ("mixture: {math: 1", "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)bad.yaml.*{message}|{message}.*"):
        read_best(path)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*best_mixture\.yaml"):
        read_best(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"mixture: {caf\xe9: 1}")
    with pytest.raises(ConfigError, match=r"cannot read .*b\.yaml"):
        read_best(tmp_path / "b.yaml")
