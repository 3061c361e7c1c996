from pathlib import Path

import numpy as np
import pytest

from raymix.core.errors import StudyError
from raymix.core.mixture import Mixture
from raymix.study.objective import domain_losses
from raymix.testing import grid, skills, transfer
from raymix.testing.bench import open_bench
from raymix.testing.transfer import NAMES, TRAIN_ROWS, read_transfer, transfer_rows, write_transfer

TABLE = Path(__file__).parents[2] / "experiments" / "planted_transfer.md"


def texts(domain, split, seed=0):
    rows = transfer_rows(domain, split, seed)
    return [tuple(message["content"] for message in row["messages"]) for row in rows]


def numbers(words):
    return np.array([[skills.LETTERS.index(letter) for letter in word] for word in words])


def at(losses, **shares):
    return losses(Mixture(NAMES, tuple(shares.get(name, 0.0) for name in NAMES)))


@pytest.mark.parametrize("domain", NAMES)
def test_splits_are_disjoint_and_a_function_of_the_seed(domain):
    splits = [texts(domain, split) for split in skills.SPLITS]
    assert [len(rows) for rows in splits] == [TRAIN_ROWS[domain], 256, 256]
    questions = [question for rows in splits for question, _ in rows]
    assert len(set(questions)) == len(questions)
    assert all(question.startswith(f"{domain}: ") for question in questions)
    assert texts(domain, "eval") == texts(domain, "eval") != texts(domain, "eval", 1)


def test_narrow_trains_on_few_letters_and_is_asked_all():
    held = {
        split: {c for q, _ in texts("narrow", split) for c in q[-3:]} for split in skills.SPLITS
    }
    assert held["train"] == set(skills.LETTERS[: transfer.NARROW])
    assert held["eval"] == held["test"] == set(skills.LETTERS)


@pytest.mark.parametrize("split", skills.SPLITS)
def test_narrow_and_broad_share_the_rule_and_noise_has_none(split):
    wrong = {}
    for domain in ("narrow", "broad", "noise"):
        questions, answers = zip(*texts(domain, split), strict=True)
        right = skills.answer("cipher", numbers([q[-3:] for q in questions]), 0)
        wrong[domain] = (numbers(answers) != right).mean()
    noise = skills.ANSWER_NOISE * 25 / 26
    assert wrong["narrow"] == pytest.approx(noise, abs=4 * np.sqrt(noise / 480))
    assert wrong["broad"] == pytest.approx(noise, abs=4 * np.sqrt(noise / 768))
    assert wrong["noise"] > 0.9


def test_the_optimum_is_far_from_the_baselines():
    """By more than 5 standard errors and 2 deviations, on seeds that chose nothing."""
    measured = read_transfer()
    for split in grid.SPLITS:
        margin = measured.margin(split)
        assert margin.difference >= 5 * margin.standard_error
        assert margin.difference >= 2 * margin.deviation
    best = measured.optimum().as_dict()
    assert best["noise"] == 0
    assert best["broad"] > best["narrow"] > 0
    assert {table.shape[0] for table in measured.fresh["optimum"].values()} == {8}


def test_transfer_is_planted():
    """With its share fixed, `narrow` gains from `broad` in the place of noise, by a nat and more.

    Ten times what the seeds do. More of its own rows in that place help much less, and `broad`
    without any `narrow` leaves it unlearnt: the transfer needs a little of both.
    """
    measured = read_transfer()
    fixed = {"narrow": 0.25, "echo": 0.25}
    beside_noise = at(measured.losses_at, **fixed, noise=0.5)["narrow"]
    beside_broad = at(measured.losses_at, **fixed, broad=0.5)["narrow"]
    more_of_itself = at(measured.losses_at, narrow=0.75, echo=0.25)["narrow"]
    assert beside_broad < beside_noise - 1
    assert beside_broad < more_of_itself - 1
    assert at(measured.losses_at, broad=0.75, echo=0.25)["narrow"] > beside_broad + 1
    deviation = np.median(measured.losses["eval"].std(axis=1, ddof=1)[:, 0])
    assert beside_noise - beside_broad > 10 * deviation


def test_no_share_of_noise_is_worth_its_draws():
    """Wherever a lattice point draws noise, giving that eighth to some other domain is better."""
    measured = read_transfer()
    assert measured.losses["eval"][:, :, NAMES.index("noise")].min() > 2.4
    scores = dict(
        zip(
            map(tuple, (measured.points * transfer.PARTS).round().astype(int).tolist()),
            measured.scores(),
            strict=True,
        )
    )
    for counts, score in scores.items():
        if counts[2] and counts[2] < transfer.PARTS:
            others = [list(counts) for _ in range(3)]
            for other, place in zip(others, (0, 1, 3), strict=True):
                other[2] -= 1
                other[place] += 1
            assert min(scores[tuple(other)] for other in others) < score


def test_echo_is_soon_learnt():
    measured = read_transfer()
    little = at(measured.losses_at, broad=0.75, echo=0.25)["echo"]
    much = at(measured.losses_at, broad=0.25, echo=0.75)["echo"]
    assert little - much < 0.1
    assert at(measured.losses_at, broad=1.0)["echo"] > little + 0.5


def test_a_grid_of_another_problem_is_refused(monkeypatch):
    monkeypatch.setattr(transfer, "transfer_fingerprint", lambda: "0" * 16)
    with pytest.raises(StudyError, match=r"run experiments/measure_transfer\.py again"):
        read_transfer()


def test_the_problem_is_a_function_of_the_seed():
    found = {transfer.transfer_fingerprint(seed) for seed in (0, 1)}
    assert found == {transfer.transfer_fingerprint.__wrapped__(seed) for seed in (0, 1)}
    assert len(found) == 2


def test_the_table_of_methods_is_of_this_problem():
    assert transfer.transfer_fingerprint() in TABLE.read_text(encoding="utf-8")


def test_two_trainings_show_the_transfer_as_measured(tmp_path):
    """The guard of the committed figures; what rounding elsewhere may cost is as in `test_grid`."""
    paths = write_transfer(tmp_path / "problem")
    assert write_transfer(tmp_path / "problem") == paths
    assert paths.proportional == pytest.approx((0.1, 0.2, 0.45, 0.25))
    bench, measured = open_bench(paths, tmp_path / "cache"), read_transfer()
    deviation = measured.losses["eval"].std(axis=1, ddof=1)
    found = {}
    for other in ("noise", "broad"):
        shares = {"narrow": 0.25, "echo": 0.25, other: 0.5}
        weights = [shares.get(name, 0.0) for name in NAMES]
        point = int(np.abs(measured.points - weights).sum(axis=1).argmin())
        losses = domain_losses(bench.train(weights, grid.GRID_SEEDS[0]).metrics)
        allowed = 4 * np.maximum(deviation[point], np.median(deviation, axis=0))
        before = measured.losses["eval"][point, 0]
        assert np.all(np.abs([losses[name] for name in NAMES] - before) <= allowed)
        found[other] = losses["narrow"]
    assert found["broad"] < found["noise"] - 1
