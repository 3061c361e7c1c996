import subprocess
import sys

import numpy as np
import pytest

from raymix.testing import skills
from raymix.testing.skills import ANSWER_NOISE, TRAIN_ROWS, answer, domain_names, domain_rows


def texts(rows):
    return [tuple(message["content"] for message in row["messages"]) for row in rows]


def letters(text):
    return np.array([[skills.LETTERS.index(letter) for letter in text]])


def read(numbers):
    return "".join(skills.LETTERS[i] for i in numbers[0])


@pytest.mark.parametrize(
    ("command", "said"),
    [("copy", "fbd"), ("sort", "bdf"), ("reverse", "dbf"), ("next", "gce"), ("say", "fbd")],
)
def test_right_answers_by_hand(command, said):
    assert read(answer(command, letters("fbd"), seed=0)) == said


def test_edges_is_the_cipher_but_for_the_middle_letter():
    hidden = read(answer("cipher", letters("fbd"), seed=0))
    assert read(answer("edges", letters("fbd"), seed=0)) == hidden[0] + "b" + hidden[2]


def test_the_cipher_is_a_permutation_in_each_place():
    every = np.tile(np.arange(26)[:, None], (1, 3))
    found = answer("cipher", every, seed=3)
    np.testing.assert_array_equal(np.sort(found, axis=0), every)
    assert len({tuple(column) for column in found.T.tolist()}) == 3
    assert not np.array_equal(found, answer("cipher", every, seed=4))


def test_an_unknown_command_is_named():
    with pytest.raises(ValueError, match="unknown command 'sing'"):
        answer("sing", letters("abc"), 0)


@pytest.mark.parametrize("domain", TRAIN_ROWS)
def test_splits_are_disjoint_and_a_function_of_the_seed(domain):
    splits = {s: texts(domain_rows(domain, s, 0)) for s in skills.SPLITS}
    assert [len(rows) for rows in splits.values()] == [TRAIN_ROWS[domain], 256, 256]
    questions = [question for rows in splits.values() for question, _ in rows]
    assert len(set(questions)) == len(questions)
    assert all(question.startswith(f"{domain}: ") for question in questions)
    assert splits["eval"] == texts(domain_rows(domain, "eval", 0))
    assert splits["eval"] != texts(domain_rows(domain, "eval", 1))


@pytest.mark.parametrize("domain", ["copy", "cipher", "edges"])
def test_noise_is_about_five_per_cent_of_the_letters(domain):
    rows = texts(domain_rows(domain, "train", 0))
    prompts = np.concatenate([letters(question[-3:]) for question, _ in rows])
    said = np.concatenate([letters(reply) for _, reply in rows])
    wrong = (said != answer(domain, prompts, 0)).mean()
    assert abs(wrong - ANSWER_NOISE * 25 / 26) < 4 * np.sqrt(ANSWER_NOISE / said.size)


def test_suites_are_nested_and_noise_does_not_count():
    assert domain_names(3) == domain_names(4)[:3] == domain_names(5)[:3]
    assert skills.objective_weights(domain_names(3)) == {"cipher": 0.5, "edges": 0.5, "noise": 0.0}
    for domains in (3, 4, 5):
        assert sum(skills.objective_weights(domain_names(domains)).values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="3, 4 or 5, got 6"):
        domain_names(6)


def test_the_drill_holds_every_command_and_no_right_answer_of_a_domain():
    rows = texts(skills.drill_rows(4000, 0))
    assert rows == texts(skills.drill_rows(4000, 0))
    assert {question.split(":")[0] for question, _ in rows} == set(skills.COMMANDS)
    copies = [(q[-3:], a) for q, a in rows if q.startswith("copy")]
    assert sum(q == a for q, a in copies) <= 1


def test_the_rows_need_no_framework():
    code = (
        "import sys, raymix.testing.skills, raymix.testing.grid\n"
        "raymix.testing.skills.domain_rows('copy', 'train', 0)\n"
        "assert not {'torch', 'ray', 'transformers', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
