"""The scores of lm-evaluation-harness are those that transformers alone comes to."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from raymix.core.errors import ConfigError
from raymix.testing.tiny import END, build_model, build_tokenizer

# What the harness and its libraries warn about is their affair.
pytestmark = pytest.mark.filterwarnings("default")
SCRIPT = Path(__file__).parents[2] / "experiments" / "harness.py"
ROWS = [{"said": f"{a}{b}{a}", "choices": [f"{a}{a}", b, "z9y"]} for a in "abcd" for b in "357"]


@pytest.fixture(scope="module")
def harness():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two tiny Llamas of random weights, a full stop in the name of one."""
    made = {}
    for seed, name in enumerate(("first", "v1.second")):
        made[name] = tmp_path_factory.mktemp("models") / name
        tokenizer = build_tokenizer()
        build_model(tokenizer, seed).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def parts(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def surest(folder, said, choices):
    """The choice whose tokens have the largest summed log-probability after `said`."""
    model, tokenizer = parts(folder)
    before = tokenizer(said)["input_ids"]
    sums = []
    for choice in choices:
        ids = before + tokenizer(choice)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logs[i - 1, ids[i]]) for i in range(len(before), len(ids))))
    return sums.index(max(sums))


def greedy(folder, said):
    """Four tokens, each the likeliest; what comes before an end."""
    model, tokenizer = parts(folder)
    ids = tokenizer(said)["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[len(tokenizer(said)["input_ids"]) :]).split(END)[0]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, folders):
    """A multiple-choice task and one of free answers, with their data, in a folder."""
    folder = tmp_path_factory.mktemp("tasks")
    first = [{**row, "label": i % 3} for i, row in enumerate(ROWS)]
    # The first model's own answer is right in every other row.
    free = [
        {"said": r["said"], "answer": greedy(folders["first"], r["said"]) if i % 2 else "no"}
        for i, r in enumerate(ROWS)
    ]
    describe(folder, "pick", first, output_type="multiple_choice")
    describe(folder, "say", free, output_type="generate_until")
    return folder, first, free


def describe(folder, name, rows, output_type):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": f"raymix_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": output_type,
        "doc_to_text": "{{said}}",
        "target_delimiter": "",
    }
    if output_type == "multiple_choice":
        task |= {"doc_to_choice": "{{choices}}", "doc_to_target": "label"}
        task |= {"metric_list": [{"metric": "acc", "aggregation": "mean"}]}
    else:
        task |= {"doc_to_target": "{{answer}}"}
        task |= {"generation_kwargs": {"until": [END], "do_sample": False, "max_gen_toks": 4}}
        task |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}]}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def test_scores_are_those_of_transformers_alone(harness, folders, tasks):
    pytest.importorskip("lm_eval", reason='needs pip install "raymix[lm-eval]"')
    folder, picks, free = tasks
    scores = harness["lm_eval_scores"](
        folders, ["raymix_*"], folder, None, batch_size=4, device="cpu"
    )
    assert list(scores) == list(folders)
    for name, found in scores.items():
        right = [surest(folders[name], r["said"], r["choices"]) == r["label"] for r in picks]
        same = [greedy(folders[name], r["said"]) == r["answer"] for r in free]
        assert found["raymix_pick/acc"] == pytest.approx(sum(right) / len(right))
        assert found["raymix_say/exact_match"] == pytest.approx(sum(same) / len(same))
        share = sum(right) / len(right)
        error = (share * (1 - share) / (len(right) - 1)) ** 0.5
        assert found["raymix_pick/acc_stderr"] == pytest.approx(error)
    assert scores["first"]["raymix_say/exact_match"] == 0.5
    few = harness["lm_eval_scores"]({"first": folders["first"]}, ["raymix_pick"], folder, 3)
    right = [surest(folders["first"], r["said"], r["choices"]) == r["label"] for r in picks[:3]]
    assert few["first"]["raymix_pick/acc"] == pytest.approx(sum(right) / 3)


def test_unknown_tasks_and_missing_data_are_named(harness, folders, tmp_path):
    pytest.importorskip("lm_eval", reason='needs pip install "raymix[lm-eval]"')
    one = {"first": folders["first"]}
    with pytest.raises(
        ConfigError, match=r"unknown task 'hellaswg' \(did you mean 'hellaswag'\?\)"
    ):
        harness["lm_eval_scores"](one, ["hellaswg"], None, None)
    describe(tmp_path, "gone", ROWS, "multiple_choice")
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"task 'raymix_gone' cannot be read: .*gone\.jsonl"):
        harness["lm_eval_scores"](one, ["raymix_gone"], tmp_path, None)


def test_without_the_harness_the_extra_is_named(harness, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r'pip install "raymix\[lm-eval\]"'):
        harness["lm_eval_scores"](folders, ["arc_easy"], None, None)


def test_what_is_refused_before_the_harness_is_asked(harness, folders, tmp_path):
    score, one = harness["lm_eval_scores"], {"first": folders["first"]}
    for arguments, words in (
        (({"x": tmp_path}, ["a"], None, None), f"model 'x': {tmp_path} has no config.json"),
        ((one, [" "], None, None), "nothing to evaluate: no tasks"),
        ((one, ["a"], tmp_path / "b", None), "include_path .*b is no folder"),
        ((one, ["a"], None, 0), "limit must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            score(*arguments)
    with pytest.raises(ConfigError, match="two models are called 'm'"):
        harness["named"](["a/m", "b/m"])
    assert harness["named"](["a/m", "n=b/m"]) == {"m": Path("a/m"), "n": Path("b/m")}


def test_the_table_puts_errors_behind_values(harness):
    from rich.console import Console

    scores = {"a": {"t/acc": 0.5, "t/acc_stderr": 0.1}, "b": {"t/acc": 0.25, "t/f1/strict": 1.0}}
    console = Console(width=80, color_system=None)
    with console.capture() as caught:
        console.print(harness["score_table"](scores))
    shown = caught.get()
    assert "0.5000 ± 0.1000" in shown
    assert "t/f1/strict" in shown
    assert "acc_stderr" not in shown
