import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raymix.testing import skills, tiny
from raymix.testing import suite as suites
from raymix.testing.suite import RECIPE, suite_fingerprint, write_suite


@pytest.fixture(scope="module")
def tokenizer(suite):
    return AutoTokenizer.from_pretrained(suite.model)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_written_suite_is_found_again(suite):
    before = {path: path.stat().st_mtime_ns for path in suite.folder.rglob("*")}
    assert write_suite(suite.folder, 3) == suite
    assert {path: path.stat().st_mtime_ns for path in suite.folder.rglob("*")} == before


def test_the_files_hold_the_rows(suite):
    for name in suite.names:
        for split in skills.SPLITS:
            lines = suite.data(name, split).read_text().splitlines()
            assert [json.loads(line) for line in lines] == skills.domain_rows(name, split, 0)
    assert suite.proportional == pytest.approx((450 / 1340, 250 / 1340, 640 / 1340))


def test_the_mask_covers_the_answer_and_the_end_of_turn(tokenizer):
    row = skills.domain_rows("cipher", "train", 0)[0]["messages"]
    found = tokenizer.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [t for t, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(learnt) == row[1]["content"] + tiny.END
    assert len(found["input_ids"]) == 10
    assert learnt[-1] == tokenizer.eos_token_id


def test_the_drill_is_written_as_the_template_writes(tokenizer):
    rows = skills.drill_rows(20, 0)
    tokens, labels = tiny._encode(tokenizer, rows)
    for row, ids, marks in zip(rows, tokens.tolist(), labels.tolist(), strict=True):
        found = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == found["input_ids"]
        assert [mark >= 0 for mark in marks] == [bool(m) for m in found["assistant_masks"]]


def test_any_text_survives_the_tokenizer(tokenizer):
    text = 'Sort: 3 < 4?\ncipher: abc "no",  two spaces'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("é")) == [tiny.UNKNOWN]


def test_the_base_knows_the_format_and_nothing_of_the_skills(suite, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(suite.model)
    assert 40_000 < model.num_parameters() < 60_000
    for name in suite.names:
        tokens, labels = tiny._encode(tokenizer, skills.domain_rows(name, "eval", 0))
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=labels).loss.item()
        assert 2.3 < loss < 2.6  # three letters at random and a certain end: 3 log(26) / 4 = 2.44


def test_the_model_is_a_function_of_the_seed(tmp_path):
    short = replace(tiny.DESIGN, steps=3)
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1)  # the state of the global generator must not matter
        tiny.write_model(tmp_path / folder, seed, short)
    a, b, c = (weights(tmp_path / folder) for folder in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_second_size_lies_beside_the_first(suite, tokenizer):
    before = weights(suite.model)
    short = replace(tiny.LARGER, steps=3)
    folder = suites.write_larger(suite, short)
    assert folder == suite.folder / "model-96x3"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 3
    assert model.num_parameters() > 4 * 45_000
    # Same tokens, so that the data are prepared once.
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert suites.write_larger(suite, short) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    suites.write_larger(suite, replace(short, steps=4))
    assert (folder / "model.safetensors").stat().st_mtime_ns != made
    # The suite is still what it was, and found again.
    assert write_suite(suite.folder, 3) == suite
    after = weights(suite.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_fingerprint_tells_suites_apart():
    found = {suite_fingerprint(k, seed) for k in (3, 4, 5) for seed in (0, 1)}
    assert len(found) == 6
    assert RECIPE.examples == 4800


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no skill suite"):
        write_suite(tmp_path, 3)
    assert (tmp_path / "thesis.txt").exists()


def test_a_suite_of_another_kind_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "write_model", lambda folder, seed: folder.mkdir())
    target = tmp_path / "suite"
    write_suite(target, 3)
    assert write_suite(target, 4, seed=2).names == skills.domain_names(4)
    assert suites._stamp(target) == suite_fingerprint(4, 2)
    assert sorted(p.name for p in target.parent.iterdir()) == ["suite"]
