"""A problem with planted transfer: one domain teaches another more than its own rows can.

Four domains on strings of three letters, made from seeds as the skill suite's are
(`testing.skills`). Their parts are planted:

========  ==============================  ======  =============================================
domain    skill                           rows    its part
========  ==============================  ======  =============================================
narrow    the rule, on few letters        160     its own rows teach a third of what is asked
broad     the same rule, on all letters   320     teaches `narrow` the rest
noise     none: the answer is random      720     irreducible: never worth a draw
echo      repeat the text                 400     easy: soon learnt, then worth little
========  ==============================  ======  =============================================

The rule replaces each letter by the hidden table of its place: 78 facts. The prompts that `narrow`
trains on have the first :data:`NARROW` letters of the alphabet only; those of its eval and test
splits have all of them. So its loss calls for more of `broad`, not of itself, though it is the
highest of those that can be lowered. The objective is the mean loss of the three domains that can
be learnt; `noise` does not count.

The losses after a training on each point of a lattice were measured: `read_transfer`. Near an edge
they fall by a nat within one eighth (no `narrow` at all, and its command is never learnt), so that
interpolation overstates the regret of small shares; `experiments/planted_transfer.py` trains again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from raymix.core.codec import fingerprint
from raymix.testing import skills, tiny
from raymix.testing.grid import Grid, Problem, read
from raymix.testing.skills import Array, Exchange, Row
from raymix.testing.suite import RECIPE, SuitePaths, written

TRAIN_ROWS: Mapping[str, int] = MappingProxyType(
    {"narrow": 160, "broad": 320, "noise": 720, "echo": 400}
)
NAMES = tuple(TRAIN_ROWS)
PARTS = 8  # of the lattice on which it was measured
NARROW = 8  # letters in the train prompts of `narrow`
COMMANDS = (*NAMES, *skills.DRILLS)
_RULES = {"narrow": "cipher", "broad": "cipher", "noise": "noise", "echo": "copy"}
_PROMPTS, _ANSWERS = 11, 12  # streams of the seed, other than those of the suite


def transfer_rows(domain: str, split: str, seed: int) -> list[Row]:
    """Rows of one split of a domain; its prompts are distinct, and splits have none in common.

    Args:
        domain: one of :data:`NAMES`.
        split: ``train``, ``eval`` or ``test``.
        seed: of prompts, hidden tables and noise.
    """
    place = skills.SPLITS.index(split)
    prompts = _prompts(domain, seed)[place]
    rng = np.random.default_rng([seed, _ANSWERS, NAMES.index(domain), place])
    share = 1.0 if domain == "noise" else skills.ANSWER_NOISE
    answers = skills.with_noise(skills.answer(_RULES[domain], prompts, seed), share, rng)
    return Exchange(domain, prompts, answers).rows()


def _prompts(domain: str, seed: int) -> tuple[Array, Array, Array]:
    """Prompts of train, eval and test, each `[rows, LENGTH]`, as letter numbers."""
    rng = np.random.default_rng([seed, _PROMPTS, NAMES.index(domain)])
    order = skills.prompt_letters(rng.permutation(len(skills.LETTERS) ** skills.LENGTH))
    few = (order < NARROW).all(axis=1) if domain == "narrow" else np.ones(len(order), dtype=bool)
    train = np.flatnonzero(few)[: TRAIN_ROWS[domain]]
    rest = np.delete(order, train, axis=0)
    held = skills.HELD_OUT_ROWS
    return order[train], rest[:held], rest[held : 2 * held]


def objective_weights() -> dict[str, float]:
    """Weights of the domain losses in the objective: equal, and 0 for ``noise``; sum to 1."""
    return skills.objective_weights(NAMES)


def transfer_problem(path: Path | None = None) -> Problem:
    """What its grid is of; `path` None: the committed one's, 165 mixtures in eighths."""
    return Problem(
        path or Path(__file__).with_name("grid_transfer.csv"),
        NAMES,
        PARTS,
        objective_weights(),
        transfer_fingerprint(),
        "experiments/measure_transfer.py",
    )


def read_transfer() -> Grid:
    """The measured grid.

    Raises:
        StudyError: the problem is no longer the one that was measured.
    """
    return read(transfer_problem())


@lru_cache(maxsize=32)
def transfer_fingerprint(seed: int = 0) -> str:
    """16 hexadecimal digits of all that decides rows, base model and training."""
    rows = {n: {s: transfer_rows(n, s, seed) for s in skills.SPLITS} for n in NAMES}
    known = {
        "rows": rows,
        "drill": skills.drill_rows(256, seed, COMMANDS),
        "commands": COMMANDS,
        "template": tiny.CHAT_TEMPLATE,
        "design": asdict(tiny.DESIGN),
        "recipe": asdict(RECIPE),
        "seed": seed,
    }
    return fingerprint(known)


def write_transfer(folder: Path | str, seed: int = 0) -> SuitePaths:
    """Writes data and base model, or finds them there already: see `suite.write_suite`.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    sizes = tuple(TRAIN_ROWS.values())
    made_of = transfer_fingerprint(seed)
    paths = SuitePaths(Path(folder), NAMES, seed, made_of, objective_weights(), sizes)

    def write_model(model: Path) -> None:
        tiny.write_model(model, seed, commands=COMMANDS)

    return written(paths, transfer_rows, write_model)
