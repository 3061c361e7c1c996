"""What preparing the data gave: tables by domain and split, and what became of the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raymix.core.codec import decode, encode
from raymix.core.errors import DataError
from raymix.core.mixture import Domain
from raymix.data.content import content_hash, write_json
from raymix.data.fetch import Content, content_of
from raymix.data.leak import Prompts

SPLITS = ("train", "eval", "test")

_FILE = "prepared.json"


@dataclass(frozen=True)
class Counts:
    """What became of the rows of one split: `read == kept + sum(dropped.values())`.

    `dropped` by reason; `truncated`: kept rows that lost their end; `tokens` and `loss_tokens` of
    the kept rows. `overlap` (eval and test): kept rows that stand in train, too, of any domain;
    `overlap_with` names those domains.
    """

    read: int
    kept: int
    dropped: Mapping[str, int]
    truncated: int
    tokens: int
    loss_tokens: int
    overlap: int = 0
    overlap_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One domain, prepared. All mappings are by split; a domain without test data lacks `test`.

    `sample`: the first train row as text, in stretches that bear loss or do not, to be looked at.
    """

    domain: str
    paths: Mapping[str, str]
    checks: Mapping[str, str]
    """SHA-256 of each table."""
    counts: Mapping[str, Counts]
    sample: tuple[tuple[str, bool], ...] = ()

    def summary(self) -> str:
        """One line: rows by split, and what was dropped or cut."""
        kept = ", ".join(f"{split} {counts.kept:,}" for split, counts in self.counts.items())
        lost = [
            f"{split}: {number:,} {reason}"
            for split, counts in self.counts.items()
            for reason, number in (*counts.dropped.items(), ("truncated", counts.truncated))
            if number
        ]
        return f"{self.domain}: {kept} rows" + (f" ({'; '.join(lost)})" if lost else "")


@dataclass(frozen=True)
class Prepared:
    """The tokenised data of an experiment, domains in its order.

    `fingerprint` changes with any token or mask, not with paths. `folder` holds this value as
    JSON. `warnings`: what the user should know but may want. `prompts`: of the format leak, where
    it is asked for; they are kept apart.
    """

    fingerprint: str
    folder: str
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()
    prompts: Prompts | None = None

    @property
    def stores(self) -> dict[str, dict[str, str]]:
        """Path of the table of each domain and split (see `data.store`)."""
        return {part.domain: dict(part.paths) for part in self.parts}

    @property
    def contents(self) -> dict[str, Content]:
        """What is in each table that is still there, the prompts' too, by its path."""
        checks = {
            part.paths[split]: sha for part in self.parts for split, sha in part.checks.items()
        }
        checks |= self.prompts.checks if self.prompts else {}
        return {p: content_of(p, sha256) for p, sha256 in checks.items() if Path(p).is_file()}

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What each domain's train split holds."""
        trains = [(part.domain, part.counts["train"]) for part in self.parts]
        return tuple(Domain(d, c.kept, c.tokens, c.loss_tokens) for d, c in trains)

    @property
    def without_test(self) -> tuple[str, ...]:
        """Domains that have no test data."""
        return tuple(part.domain for part in self.parts if "test" not in part.paths)


def refuse_overlap(prepared: Prepared, max_overlap: float) -> None:
    """Refuse eval and test rows that were trained on.

    Raises:
        DataError: More than `max_overlap` of a domain's eval or test rows stand in train.
    """
    for part in prepared.parts:
        for split, counts in part.counts.items():
            share = counts.overlap / counts.kept
            if share > max_overlap:
                raise DataError(
                    f"domain '{part.domain}': {counts.overlap} of {counts.kept} {split} rows "
                    f"({share:.1%}) also stand in the train data of "
                    f"{', '.join(counts.overlap_with)}, more than max_overlap {max_overlap:g} "
                    "allows; take them out of train, or set max_overlap to "
                    f"{_above(share):g} to allow it"
                )


def prepared_folder(cache: Path, key: str) -> Path:
    """Where the `Prepared` with this fingerprint is kept."""
    return cache / "prepared" / key


def save(value: Prepared | Part, folder: Path) -> None:
    """Write `value` into `folder`, as a whole."""
    write_json(folder / _FILE, encode(value))


def load_part(folder: Path, cache: Path) -> Part | None:
    """The domain that was saved in `folder`; None where anything of it is missing or damaged."""
    try:
        part = decode(Part, json.loads((folder / _FILE).read_text("utf-8")))
    except (OSError, ValueError):
        return None
    return part if _whole(part, cache) else None


def load(folder: Path, cache: Path) -> Prepared | None:
    """What was saved in `folder`; None where anything of it is missing or damaged."""
    try:
        prepared = decode(Prepared, json.loads((folder / _FILE).read_text("utf-8")))
    except (OSError, ValueError):
        return None
    return prepared if all(_whole(part, cache) for part in prepared.parts) else None


def _whole(part: Part, cache: Path) -> bool:
    """Whether every table holds the bytes that were written."""
    try:
        hashes = {split: content_hash(Path(path), cache) for split, path in part.paths.items()}
    except OSError:
        return False
    return hashes == dict(part.checks)


def _above(share: float) -> float:
    """`share`, rounded up to two digits."""
    return min(1.0, int(share * 100 + 1) / 100)
