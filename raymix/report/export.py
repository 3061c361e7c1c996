"""`raymix export`: the winner for other trainers, its meaning kept."""

from __future__ import annotations

import pprint
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raymix.core.errors import ConfigError, nearest
from raymix.data.locate import Hub
from raymix.report.best import dump_best
from raymix.report.recipe import Portion, Recipe
from raymix.report.trainers import axolotl, llamafactory, trl

_COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
}


def export(recipe: Recipe, target: str) -> dict[str, str]:
    """The files that say the mixture in the words of `target`: text by file name.

    Raises ConfigError for an unknown target.
    """
    if target not in TARGETS:
        raise ConfigError(
            f"cannot export to '{target}'{nearest(target, TARGETS)}; known: {', '.join(TARGETS)}"
        )
    return TARGETS[target](recipe)


def write(files: Mapping[str, str], folder: str | Path) -> tuple[Path, ...]:
    """Write the files to a folder; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return tuple(paths)


def plain_yaml(recipe: Recipe) -> dict[str, str]:
    """The file that is raymix's own: what `raymix train --mixture` reads."""
    return {"best_mixture.yaml": dump_best(recipe.best)}


def hf(recipe: Recipe) -> dict[str, str]:
    """A Python script that makes the mixture with the `datasets` library."""
    notes = [
        "interleave_datasets knows probabilities and no budget: 'first_exhausted' stops when the "
        "first domain ends, 'all_exhausted' repeats the small ones until the largest ends. So the "
        "rows are counted out first (shuffled whole passes and a random remainder), and "
        "'all_exhausted_without_replacement' takes each of them once",
        "train on it for one epoch",
    ]
    portions = recipe.portions()
    columns = {p.plan.layout.type for p in portions}
    if len(columns) > 1 or None in columns:
        notes.append(
            "WARNING: the domains may have rows of several formats; bring them to one before use"
        )
    table = pprint.pformat({p.domain: _loading(p) for p in portions}, width=96, sort_dicts=False)
    text = recipe.header(notes) + _SCRIPT.format(seed=recipe.seed, domains=table)
    return {"mixture.py": text}


def _loading(portion: Portion) -> dict[str, Any]:
    """Arguments of load_dataset, columns to keep (None: all), rows to take."""
    train = portion.plan.train
    if isinstance(train, Hub):
        named = {"path": train.id, "name": train.name, "revision": train.revision}
        load: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
        load["split"] = train.split
    else:
        load = {"path": portion.builder, "data_files": list(portion.files), "split": "train"}
    layout = portion.plan.layout
    keep = None
    if layout.type is not None and not layout.columns:
        keep = list(_COLUMNS[layout.type])
    return {"load": load, "columns": keep, "rows": portion.rows}


_SCRIPT = '''
from datasets import concatenate_datasets, interleave_datasets, load_dataset

SEED = {seed}

DOMAINS = {domains}


def passes(load, columns, rows):
    """Whole passes over a domain, each shuffled anew, and a random part of one more."""
    data = load_dataset(**load)
    if columns is not None:
        data = data.select_columns([name for name in columns if name in data.column_names])
    whole, rest = divmod(rows, len(data))
    parts = [data.shuffle(seed=SEED + number) for number in range(whole)]
    if rest:
        parts.append(data.shuffle(seed=SEED + whole).select(range(rest)))
    return concatenate_datasets(parts)


def mixture():
    """The training set: every row counted out above, mixed evenly."""
    parts = [passes(**domain) for domain in DOMAINS.values()]
    if len(parts) == 1:
        return parts[0]
    total = sum(len(part) for part in parts)
    return interleave_datasets(
        parts,
        probabilities=[len(part) / total for part in parts],
        seed=SEED,
        stopping_strategy="all_exhausted_without_replacement",
    )


if __name__ == "__main__":
    print(mixture())
'''

TARGETS: dict[str, Callable[[Recipe], dict[str, str]]] = {
    "yaml": plain_yaml,
    "trl": trl,
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "hf": hf,
}
