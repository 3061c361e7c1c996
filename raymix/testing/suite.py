"""The skill suite in a folder: data, base model and the recipe of one training."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from raymix.core.codec import fingerprint
from raymix.testing import skills, tiny

_STAMP = "suite.json"


@dataclass(frozen=True)
class Recipe:
    """One training of the suite: what the grid was measured with.

    AdamW with betas .9 / .999 and no weight decay, linear warmup and cosine to 0, fp32, rows
    padded on the right, not packed. 4,800 examples are 2 to 4 epochs of the proportional data.
    """

    steps: int = 150
    batch_size: int = 32  # examples
    learning_rate: float = 2e-3
    warmup_steps: int = 10
    clip_norm: float = 1.0

    @property
    def examples(self) -> int:
        """The budget in examples."""
        return self.steps * self.batch_size


RECIPE = Recipe()


@dataclass(frozen=True)
class SuitePaths:
    """Where a written suite lies.

    Attributes:
        folder: holds ``data/<domain>/{train,eval,test}.jsonl`` and ``model/``.
        names: the domains, in the order of every mixture.
        seed: of the rows, the tables and the base model.
        fingerprint: of the code that wrote the suite, its domains and its seed.
        objective: weight of each domain's loss.
        sizes: train rows of the domains.
    """

    folder: Path
    names: tuple[str, ...]
    seed: int
    fingerprint: str
    objective: Mapping[str, float] = field(repr=False, hash=False)
    sizes: tuple[int, ...] = field(repr=False)

    @property
    def model(self) -> Path:
        """The Hugging Face folder of the base model and its tokenizer."""
        return self.folder / "model"

    def data(self, domain: str, split: str) -> Path:
        """The JSONL file of one split (train, eval or test) of a domain."""
        return self.folder / "data" / domain / f"{split}.jsonl"

    @property
    def proportional(self) -> tuple[float, ...]:
        """Shares proportional to the train rows, in the order of ``names``."""
        return tuple(size / sum(self.sizes) for size in self.sizes)


@lru_cache(maxsize=32)
def suite_fingerprint(domains: int = 5, seed: int = 0) -> str:
    """16 hexadecimal digits of all that decides rows, base model and training of the suite.

    Made from the rows themselves, not from source text: a comment may change, a row may not.
    """
    names = skills.domain_names(domains)
    rows = {n: {s: skills.domain_rows(n, s, seed) for s in skills.SPLITS} for n in names}
    known = {
        "rows": rows,
        "drill": skills.drill_rows(256, seed),
        "commands": skills.COMMANDS,
        "template": tiny.CHAT_TEMPLATE,
        "design": asdict(tiny.DESIGN),
        "recipe": asdict(RECIPE),
        "seed": seed,
    }
    return fingerprint(known)


def write_suite(folder: Path | str, domains: int = 5, seed: int = 0) -> SuitePaths:
    """Writes the suite, or finds it there already.

    Takes about eight seconds on one core, nearly all of it pretraining; a folder whose
    fingerprint fits is returned as it is. Domains and model are the same in the suites of 3, 4
    and 5 domains. Safe to call from several processes: the folder appears whole or not at all.

    Args:
        folder: made if it is not there; a suite with another fingerprint in it is replaced.
        domains: K, one of 3, 4, 5.
        seed: of rows, hidden tables, weights and pretraining.

    Raises:
        ValueError: if ``domains`` is not 3, 4 or 5.
        FileExistsError: if the folder holds something that is not a suite.
    """
    names = skills.domain_names(domains)
    made_of = suite_fingerprint(domains, seed)
    sizes = tuple(skills.TRAIN_ROWS[name] for name in names)
    paths = SuitePaths(Path(folder), names, seed, made_of, skills.objective_weights(names), sizes)

    def write_model(model: Path) -> None:
        tiny.write_model(model, seed)

    return written(paths, skills.domain_rows, write_model)


def written(
    paths: SuitePaths,
    rows: Callable[[str, str, int], list[skills.Row]],
    write_model: Callable[[Path], None],
) -> SuitePaths:
    """`paths`, with all that belongs there; a folder with its fingerprint is left as it is.

    Args:
        paths: what is to be there.
        rows: of a domain and split, by the seed.
        write_model: leaves the base model in a folder.

    Raises:
        FileExistsError: as `write_suite`.
    """
    target, made_of = paths.folder, paths.fingerprint
    if _stamp(target) == made_of:
        return paths
    if target.exists() and any(target.iterdir()) and _stamp(target) is None:
        raise FileExistsError(f"{target} holds files and is no skill suite; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / "suite"
        _write(replace(paths, folder=made), rows)
        write_model(made / "model")
        _move(made, target, made_of)
    return paths


def write_larger(suite: SuitePaths, design: tiny.Design = tiny.LARGER) -> Path:
    """The base model in a second size, beside the first: same tokenizer, drill and seed.

    About twenty seconds on one core; found again where it is there already. It belongs to the
    suite in whose folder it lies and goes when that is replaced. The suite's own fingerprint does
    not know of it.

    Returns:
        The Hugging Face folder.
    """
    target = suite.folder / f"model-{design.width}x{design.layers}"
    made_of = fingerprint(suite.fingerprint, asdict(design))
    if _stamp(target) == made_of:
        return target
    with tempfile.TemporaryDirectory(dir=suite.folder, prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / "model"
        tiny.write_model(made, suite.seed, design)
        (made / _STAMP).write_text(json.dumps({"fingerprint": made_of}) + "\n", encoding="utf-8")
        _move(made, target, made_of)
    return target


def _write(paths: SuitePaths, rows: Callable[[str, str, int], list[skills.Row]]) -> None:
    for name in paths.names:
        for split in skills.SPLITS:
            lines = [json.dumps(row) for row in rows(name, split, paths.seed)]
            path = paths.data(name, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    stamp = {"fingerprint": paths.fingerprint, "names": paths.names, "seed": paths.seed}
    (paths.folder / _STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")


def _move(made: Path, target: Path, made_of: str) -> None:
    """Puts a suite, or a model of it, in its place, unless another process was faster."""
    if _stamp(target) == made_of:
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        made.replace(target)
    except OSError:
        if _stamp(target) != made_of:
            raise


def _stamp(folder: Path) -> str | None:
    """The fingerprint of what is in the folder, or None where there is none."""
    path = folder / _STAMP
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"])
