"""What the user says about the data: the `datasets:` entries, and all that shapes their tokens."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raymix.core.errors import ConfigError
from raymix.data.formats import canonical_type

Patterns = str | tuple[str, ...]

_DOMAIN = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,100}")


class DatasetSpec(BaseModel):
    """One domain: where its rows lie, how they are written, what it is evaluated on.

    `path`: a file, a glob, a folder (of data files, or made by `save_to_disk`) or a hub id; `name`
    and `revision`: the hub's subset and commit. `dataset_info` instead of `path`: LLaMA-Factory's
    file and one of its entries, `data/dataset_info.json#alpaca_en`. `eval_split`, `test_split`:
    a split's name, or how many rows are taken out of train (a whole number, or a fraction below
    1). `type` None: each row's format is told by its keys. `columns`: raymix's name for a part of
    a row, to the row's own name for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str
    path: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: Patterns | Mapping[str, Patterns] | None = None
    eval_split: str | int | float | None = None
    eval_path: str | None = None
    test_split: str | int | float | None = None
    test_path: str | None = None
    type: str | None = None
    dataset_info: str | None = None
    columns: Mapping[str, str] | None = None

    @field_validator("domain")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _DOMAIN.fullmatch(value):
            raise ConfigError(
                f"domain '{value}' must be made of letters, digits, '_', '.' and '-' (100 at the "
                "most): it becomes part of metric and file names"
            )
        return value

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str | None, info: ValidationInfo) -> str | None:
        try:
            return None if value is None else canonical_type(value)
        except ConfigError as error:
            raise ConfigError(f"{_here(info)}{error}") from None

    @field_validator("eval_split", "test_split", mode="before")
    @classmethod
    def _possible_carve(cls, value: object, info: ValidationInfo) -> object:
        impossible = isinstance(value, bool) or (isinstance(value, float) and not 0 < value < 1)
        if impossible or (isinstance(value, int) and value < 1):
            raise ConfigError(
                f"{_here(info)}{info.field_name} takes a split's name, a number of rows (1 or "
                f"more) or a fraction between 0 and 1, got {value}"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> DatasetSpec:
        here = f"domain '{self.domain}'"
        if (self.path is None) == (self.dataset_info is None):
            raise ConfigError(f"{here} needs either path or dataset_info")
        if self.dataset_info is not None and (self.columns is not None or self.type is not None):
            raise ConfigError(f"{here}: type and columns are given by its dataset_info")
        if self.eval_split is None and self.eval_path is None:
            raise ConfigError(
                f"{here} has no eval data; set eval_path, or eval_split to a split's name or to "
                "a number of rows to take out of train"
            )
        for key in ("eval", "test"):
            split = getattr(self, f"{key}_split")
            if getattr(self, f"{key}_path") is not None and isinstance(split, int | float):
                raise ConfigError(f"{here} has both {key}_path and {key}_split: {split}; keep one")
        return self


def _here(info: ValidationInfo) -> str:
    """Which domain a field belongs to; nothing while the domain itself is wrong."""
    domain = info.data.get("domain")
    return "" if domain is None else f"domain '{domain}': "


class DataSpec(BaseModel):
    """All that decides which tokens a study trains on.

    `tokenizer`: folder or hub id; `chat_template`: a Jinja file, used instead of the tokenizer's
    own. Rows are cut at `max_length` tokens. `seed` chooses the rows that `eval_split: 200` takes
    out of train. `max_overlap`: share of a domain's eval or test rows that may also stand in train.
    `cache_dir` None: `$RAYMIX_CACHE`, else `~/.cache/raymix`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: tuple[DatasetSpec, ...]
    tokenizer: str
    chat_template: str | None = None
    max_length: int = Field(1024, ge=2)
    assistant_only_loss: bool = True
    seed: int = 0
    max_overlap: float = Field(0.01, ge=0, le=1)
    trust_remote_code: bool = False
    cache_dir: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> DataSpec:
        if not self.datasets:
            raise ConfigError("datasets is empty: nothing to mix")
        name, count = Counter(d.domain for d in self.datasets).most_common(1)[0]
        if count > 1:
            raise ConfigError(
                f"domain '{name}' stands {count} times in datasets; names must differ"
            )
        return self

    def cache(self) -> Path:
        """The folder that prepared tables are kept in."""
        return Path(self.cache_dir).expanduser().absolute() if self.cache_dir else default_cache()


def default_cache() -> Path:
    """The cache of this machine: `$RAYMIX_CACHE`, else `~/.cache/raymix`."""
    return Path(os.environ.get("RAYMIX_CACHE") or "~/.cache/raymix").expanduser().absolute()
