"""Tables of trainings in several stages: losses stage by domain, forgetting, the prompt's part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import RenderableType

from raymix.core.job import Prompt, Spec, Stage, Trainable
from raymix.core.simplex import Vector
from raymix.report.facts import Facts
from raymix.report.layout import noted, rounded, table_of
from raymix.report.methods import FLOOR
from raymix.report.stages import Course, courses

_MOST_SPREADS = 4
"""With more stages than this their losses are written without a standard deviation."""

_MOST_SHARES = 6
"""Of more domains than this only the largest shares of a stage are told."""

_MEANING = (
    "before: the model before training; change: the end less before; forgotten: the end less the "
    "lowest loss at the end of any stage (0: it is lowest at the end). Nats per token."
)

_TRAINED, _NOT = "*", "\N{NO-BREAK SPACE}"


def stage_tables(known: Facts) -> list[RenderableType]:
    """Losses by stage and domain of what `courses` has, and forgetting; empty without stages."""
    found = courses(known)
    parts: list[RenderableType] = []
    if len(found) > 1:
        parts.append(summary(found))
    for each in found:
        # A single stage has nothing between the model before training and the end.
        if len(each.numbers) > 1 or not each.whole:
            parts.append(matrix(each, explained=len(found) == 1))
            parts += [table for table in (accuracy(each), swapped(each)) if table is not None]
    return parts


def summary(found: Sequence[Course]) -> RenderableType:
    """A line for each method or strategy: what it came to, and what it forgot on the way."""
    table = table_of("Stages and forgetting", ("", "strategy"), ("stages", "end", "change"))
    table.add_column("forgotten", justify="right", no_wrap=True)
    table.add_column("most", no_wrap=True)
    for each in found:
        end, change = each.ends("losses"), each.ends("change")
        lost, most = each.stack("forgotten"), "–"
        several = len(each.numbers) > 1
        means = lost.mean(axis=0)
        if several and np.isfinite(means).any():
            place = int(np.nanargmax(means))
            most = f"{each.domains[place]} {means[place]:.3f}"
        table.add_row(
            each.name,
            _name(each.strategy),
            f"{len(each.numbers)}{'' if each.whole else ', stopped'}",
            _spread(end.mean(axis=1)),
            _spread(change.mean(axis=1), sign=True),
            _spread(lost.mean(axis=1)) if several else "–",
            most,
        )
    return noted(table, f"Means over domains, eval. {_MEANING}")


def matrix(each: Course, explained: bool = True) -> RenderableType:
    """Eval losses by domain (rows) at the end of each stage, their change and what was forgotten.

    Means over the trainings, with standard deviations. `explained`: with what the columns mean.
    """
    count, stages = len(each.runs), [str(number + 1) for number in each.numbers]
    table = table_of(_title(each), ("domain",), ("before", *stages, "change", "forgotten"))
    losses, change = each.stack("losses"), each.ends("change")
    lost, shares = each.stack("forgotten"), each.shares()
    for place, name in enumerate(each.domains):
        given = None if shares is None else shares[:, place]
        table.add_row(
            name,
            *_cells(losses[:, :, place], given),
            _spread(change[:, place], sign=True),
            _spread(lost[:, place]),
        )
    table.add_section()
    blank = None if shares is None else np.zeros(len(stages))
    means = losses.mean(axis=2)
    table.add_row(
        "mean",
        *_cells(means, blank),
        _spread(change.mean(axis=1), sign=True),
        _spread(lost.mean(axis=1)),
    )
    said = _stages_in_words(each)
    if explained:
        said.append(_MEANING)
    if shares is not None:
        said.append(f"{_TRAINED}: trained on in that stage.")
    if count > 1:
        wide = len(stages) <= _MOST_SPREADS
        said.append(
            f"±: standard deviation over {count} trainings{'' if wide else ' (ends only)'}."
        )
    if each.left_out:
        said.append(f"{each.left_out} training(s) of it had other stages and are left out.")
    return noted(table, " ".join(said))


def accuracy(each: Course) -> RenderableType | None:
    """Exact match by domain at the end of each stage, of the domains where any was right."""
    right = each.stack("accuracies").mean(axis=0)
    rows = [(n, right[:, i]) for i, n in enumerate(each.domains) if np.any(right[:, i] > FLOOR)]
    if not rows:
        return None
    stages = [str(number + 1) for number in each.numbers]
    table = table_of("Exact match by stage", ("domain",), ("before", *stages))
    for name, values in rows:
        table.add_row(name, *(f"{v:.1%}" if math.isfinite(v) else "–" for v in values))
    left = [name for name in each.domains if name not in dict(rows)]
    words = f"At the floor ({FLOOR:.0%} at the most), so left out: {', '.join(left)}."
    return noted(table, words) if left else table


def swapped(each: Course) -> RenderableType | None:
    """Losses with and without the prompt (or the adapters) at the end of each stage."""
    use, other = each.stack("losses").mean(axis=0), each.stack("swapped").mean(axis=0)
    shown = [row for row in range(1, len(use)) if np.isfinite(other[row]).any()]
    if not shown:
        return None
    parts = each.runs[0].parts
    heads = ("with", "without") if parts else ("in use", "swapped")
    columns = [f"{each.numbers[row - 1] + 1} {head}" for row in shown for head in heads]
    table = table_of(f"With and without {_carrier(parts)}", ("domain",), columns)
    for place, name in enumerate(each.domains):
        cells = []
        for row in shown:
            carries = not parts or _carries(parts[row - 1], name)
            pair = (use[row, place], other[row, place])
            marks = (_TRAINED, _NOT) if carries else (_NOT, _TRAINED)
            both = pair if carries else pair[::-1]
            cells += [f"{rounded(v)}{m}" for v, m in zip(both, marks, strict=True)]
        table.add_row(name, *cells)
    return noted(table, f"eval losses at the end of a stage; {_TRAINED}: as in use, counted above")


def _carries(stage: Stage, domain: str) -> bool:
    return stage.carriers is None or domain in stage.carriers


def _carrier(parts: Sequence[Stage]) -> str:
    """What rows may carry: in words, by the strategy's stages."""
    if not parts:
        return "prompt or adapters"
    prompted = any(stage.prompt is not Prompt.OFF for stage in parts)
    return "the prompt" if prompted else "the adapters"


def _title(each: Course) -> str:
    stopped = "" if each.whole else f", stopped in stage {each.numbers[-1] + 2}"
    strategy = _strategy_in_words(each)
    of = f", {strategy}" if strategy else ""
    return f"Losses by stage: {each.name}{of}{stopped}"


def _name(spec: Spec | None) -> str:
    return "" if spec is None else spec.path.rpartition(":")[2]


def _strategy_in_words(each: Course) -> str:
    """The strategy with its fields, and what was searched of it: `DMT(special=[code], k=0.25)`."""
    if each.strategy is None:
        return ""
    searched = sorted({name for t in each.trials for name in t.proposal.params})
    plain = [
        f"{name}={_value(value)}"
        for name, value in each.strategy.fields.items()
        if value is not None and name not in searched
    ]
    ranges = []
    for name in searched:
        own = [t.proposal.params[name] for t in each.trials if name in t.proposal.params]
        low, high = f"{min(own):.3g}", f"{max(own):.3g}"
        ranges.append(f"{name}={low}" if low == high else f"{name}={low} to {high}")
    fields = ", ".join([*plain, *ranges])
    return f"{_name(each.strategy)}({fields})" if fields else _name(each.strategy)


def _value(value: object) -> str:
    """A field as it is written: lists of lists are what comes together, one after the other."""
    if isinstance(value, list | tuple):
        items = ["+".join(v) if isinstance(v, list | tuple) else str(v) for v in value]
        return f"[{', '.join(items)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _stages_in_words(each: Course) -> list[str]:
    """What every stage was trained on and how, one sentence each; empty where that is unknown."""
    shares = each.shares()
    if shares is None:
        return []
    said = []
    progress = each.stack("progress").mean(axis=0)
    for row, stage in enumerate(each.runs[0].parts):
        part = progress[row + 1] - progress[row]
        words = f"Stage {each.numbers[row] + 1}: {part:.0%} of the budget on "
        words += _shares_in_words(each.domains, shares[row]) + _manner(stage)
        said.append(words + ".")
    return said


def _shares_in_words(names: Sequence[str], shares: Vector) -> str:
    order = sorted(range(len(names)), key=lambda place: -shares[place])
    used = [place for place in order if shares[place] > 0]
    told = used if len(used) <= _MOST_SHARES else used[: _MOST_SHARES - 1]
    written = [f"{names[i]} {shares[i]:.3f}".replace(" 0.", " .") for i in told]
    more = len(used) - len(told)
    return ", ".join(written) + (f" and {more} more" if more else "")


def _manner(stage: Stage) -> str:
    """What of a stage is not as usual: what it moves, its prompt, rows drawn again."""
    moved = {Trainable.LORA: "adapters alone are trained", Trainable.NONE: "the model is frozen"}
    said = [moved[stage.trainable]] if stage.trainable in moved else []
    if stage.prompt is not Prompt.OFF:
        said.append("the prompt is trained" if stage.prompt is Prompt.TRAIN else "prompt frozen")
    if stage.replay:
        said.append(f"seen before: {', '.join(stage.replay)}")
    return f" ({'; '.join(said)})" if said else ""


def _cells(losses: Vector, shares: Vector | None) -> list[str]:
    """One domain's losses [n, S + 1]; of the stages that trained on it (shares [S] > 0) marked."""
    spreads = losses.shape[1] - 1 <= _MOST_SPREADS
    cells = [rounded(float(losses[:, 0].mean()))]
    for row in range(1, losses.shape[1]):
        values = losses[:, row]
        cell = _spread(values) if spreads else rounded(float(values.mean()))
        if shares is not None:
            cell += _TRAINED if shares[row - 1] > 0 else _NOT
        cells.append(cell)
    return cells


def _spread(values: Vector, sign: bool = False) -> str:
    """Mean and standard deviation; a dash where any is unknown."""
    if not np.all(np.isfinite(values)):
        return "–"
    mean = f"{values.mean():{'+' if sign else ''}.3f}"
    if len(values) < 2:
        return mean
    return f"{mean} ±{values.std(ddof=1):.3f}".replace("±0.", "±.")
