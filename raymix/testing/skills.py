"""The domains of the embedded skill suite: rows as pure functions of a seed.

Five skills on strings of three letters, written for this project. Each plays one part in a
mixture problem:

========  =============================  ==========================================  ===========
domain    example                        skill                                       its part
========  =============================  ==========================================  ===========
cipher    ``cipher: bdf`` to ``qxt``     replace each letter by hidden tables        slow
edges     ``edges: bdf`` to ``qdt``      the cipher on the first and last letter     shares it
noise     ``noise: bdf`` to ``kzu``      none: the answer is random                  useless
copy      ``copy: bdf`` to ``bdf``       repeat the text                             fast, large
sort      ``sort: fbd`` to ``bdf``       put letters in alphabetical order           scarce
========  =============================  ==========================================  ===========

Each of the three places has a table of its own, so ``cipher`` has 78 facts to learn and does not
saturate at once; 52 of them are all that ``edges`` needs. In every domain :data:`ANSWER_NOISE`
of the answer letters are random, in all three splits: losses keep a floor and the Fisher
information does not vanish. ``noise`` belongs to the mixture but not to the objective, where its
weight is 0: nothing can improve it, and a good mixture gives it no share.

For the pair, the cipher written backwards was tried and left out: whether a training learns it
is a matter of luck. The objective's standard deviation over seeds then reached .25 nats with some
base models; in the measured grids half of the points have less than .05.

NumPy and the standard library only.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]

LETTERS = string.ascii_lowercase
LENGTH = 3  # letters of a prompt and of an answer
ANSWER_NOISE = 0.05  # share of answer letters replaced by a random letter
SPLITS = ("train", "eval", "test")
HELD_OUT_ROWS = 256  # rows of eval, and of test, of each domain
OUT_OF_OBJECTIVE = "noise"

TRAIN_ROWS: Mapping[str, int] = MappingProxyType(
    {"cipher": 450, "edges": 250, "noise": 640, "copy": 700, "sort": 80}
)
DRILLS = ("say", "reverse", "next")  # what the base model has practised; none is a domain
COMMANDS = (*TRAIN_ROWS, *DRILLS)

SORT_FORMAT: Mapping[str, str] = MappingProxyType(
    {
        "target": "sort",
        "pattern": rf"(?=[a-z]{{{LENGTH}}}$){'?'.join(LETTERS)}?",
        "instruction": "^[a-z]+: ",
    }
)
"""What an experiment's `format_leak` block says to look for `sort`'s format: letters that ascend.

Of three random letters 15% do, so the perfect model has about that much leak on other domains, and
one that sorts whatever it is asked 89%: equal letters do not count. They are 11% of the sorted
answers, but most of what the base model says to a word that it does not know (`kkk`).
"""

_TABLES, _PROMPTS, _ANSWERS, _DRILLS = range(4)  # streams of the seed, so that none repeats


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Row(TypedDict):
    """One example, as it stands on a line of a JSONL file."""

    messages: list[Message]


@dataclass(frozen=True)
class Exchange:
    """A command with its prompts and answers as letter numbers, both ``[rows, LENGTH]``."""

    command: str
    prompts: Array
    answers: Array

    def rows(self) -> list[Row]:
        """The exchange as chat rows."""
        return [
            chat_row(f"{self.command}: {_text(prompt)}", _text(answer))
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        ]


def chat_row(question: str, answer: str) -> Row:
    """A conversation of one question and one answer."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def domain_names(domains: int) -> tuple[str, ...]:
    """The domains of the suite with K ``domains``: the first K, so suites are nested.

    K = 3 is the pair that shares a skill and the useless domain, 4 adds the fast one, 5 the
    scarce one.

    Raises:
        ValueError: if ``domains`` is not 3, 4 or 5.
    """
    if domains not in (3, 4, 5):
        raise ValueError(f"domains must be 3, 4 or 5, got {domains}")
    return tuple(TRAIN_ROWS)[:domains]


def objective_weights(names: tuple[str, ...]) -> dict[str, float]:
    """Weights of the domain losses in the objective: equal, and 0 for ``noise``; sum to 1."""
    counted = [name for name in names if name != OUT_OF_OBJECTIVE]
    return {name: (1.0 / len(counted) if name in counted else 0.0) for name in names}


def domain_rows(domain: str, split: str, seed: int) -> list[Row]:
    """Rows of one split of a domain, the same whatever other domains are in the suite.

    The prompts of a domain are distinct, and its splits have none in common.

    Args:
        domain: one of :data:`TRAIN_ROWS`.
        split: ``train``, ``eval`` or ``test``.
        seed: of the suite.
    """
    train = TRAIN_ROWS[domain]
    start, count = {
        "train": (0, train),
        "eval": (train, HELD_OUT_ROWS),
        "test": (train + HELD_OUT_ROWS, HELD_OUT_ROWS),
    }[split]
    index = COMMANDS.index(domain)
    order = np.random.default_rng([seed, _PROMPTS, index]).permutation(len(LETTERS) ** LENGTH)
    prompts = prompt_letters(order[start : start + count])
    rng = np.random.default_rng([seed, _ANSWERS, index, SPLITS.index(split)])
    share = 1.0 if domain == OUT_OF_OBJECTIVE else ANSWER_NOISE
    answers = with_noise(answer(domain, prompts, seed), share, rng)
    return Exchange(domain, prompts, answers).rows()


def drill_rows(count: int, seed: int, commands: Sequence[str] = COMMANDS) -> list[Row]:
    """Rows on which the base model is pretrained, in random order.

    Three fifths practise :data:`DRILLS` and so the format and where to look; the rest ask any of
    `commands`, the domains' too, and are answered at random. Without those the base is sure of
    itself on words it has never seen and starts at 13 nats instead of log 26.
    """
    rng = np.random.default_rng([seed, _DRILLS])
    rows: list[Row] = []
    for command in rng.choice(len(DRILLS) * 5, size=count):
        prompt = rng.integers(0, len(LETTERS), (1, LENGTH))
        if command < len(DRILLS) * 3:
            name = DRILLS[command % len(DRILLS)]
            rows += Exchange(name, prompt, answer(name, prompt, seed)).rows()
        else:
            name = commands[int(rng.integers(len(commands)))]
            rows += Exchange(name, prompt, with_noise(prompt, 1.0, rng)).rows()
    return rows


def answer(command: str, prompts: Array, seed: int) -> Array:
    """The right answers to ``prompts`` ``[rows, LENGTH]``, as letter numbers.

    ``noise`` has no right answer; it gets the prompt, of which no letter is then kept.
    """
    match command:
        case "copy" | "say" | "noise":
            return prompts.copy()
        case "cipher":
            return _cipher(prompts, seed)
        case "edges":
            replaced = _cipher(prompts, seed)
            replaced[:, 1:-1] = prompts[:, 1:-1]
            return replaced
        case "sort":
            return np.sort(prompts, axis=1)
        case "reverse":
            return prompts[:, ::-1]
        case "next":
            return (prompts + 1) % len(LETTERS)
        case _:
            raise ValueError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")


def _cipher(prompts: Array, seed: int) -> Array:
    """Each letter through the hidden permutation of the alphabet that belongs to its place."""
    rng = np.random.default_rng([seed, _TABLES])
    tables = np.stack([rng.permutation(len(LETTERS)) for _ in range(LENGTH)])
    return tables[np.arange(LENGTH), prompts]


def with_noise(answers: Array, share: float, rng: np.random.Generator) -> Array:
    """``answers`` with this share of the letters, on average, drawn at random."""
    random = rng.integers(0, len(LETTERS), answers.shape)
    return np.where(rng.random(answers.shape) < share, random, answers)


def prompt_letters(numbers: Array) -> Array:
    """Prompt numbers ``[rows]`` as letter numbers ``[rows, LENGTH]`` (base 26)."""
    powers = len(LETTERS) ** np.arange(LENGTH - 1, -1, -1)
    return numbers[:, None] // powers % len(LETTERS)


def _text(letters: Array) -> str:
    return "".join(LETTERS[i] for i in letters)
