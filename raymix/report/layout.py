"""How the report's tables look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text


def table_of(title: str, left: Sequence[str], right: Sequence[str], caption: str = "") -> Table:
    """A table that fits 80 columns of a terminal: no frames, numbers never broken."""
    table = Table(
        title=Text(f"\n{title}", style="table.title"),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=caption or None,
        caption_justify="left",
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def noted(table: Table, words: str) -> Group:
    """The table and below it what its numbers mean, as wide as the terminal is."""
    return Group(table, Text(words, style="italic"))


def rounded(value: float, digits: int = 3) -> str:
    """A loss with `digits` decimals; a dash where it is unknown."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
