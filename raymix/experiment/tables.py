"""What is shown before anything trains, as rich tables."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raymix.core.job import Prompt, Stage, Trainable, TrainResult
from raymix.data.leak import Prompts
from raymix.data.prepared import Prepared
from raymix.experiment.estimate import Estimate
from raymix.experiment.needs import Needs
from raymix.experiment.preview import Leg, Preview


def prepared_table(prepared: Prepared) -> RenderableType:
    """Rows, tokens and losses of rows by domain and split, and one row of each as it is trained.

    In the sample, what bears loss is green.
    """
    table = Table(title="data", title_justify="left")
    for name in ("domain", "split"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "dropped", "cut", "tokens", "loss tokens", "in train"):
        table.add_column(name, justify="right", no_wrap=True)
    samples: list[RenderableType] = []
    reasons: Counter[str] = Counter()
    for part in prepared.parts:
        for split, counts in part.counts.items():
            reasons.update(counts.dropped)
            shared = "" if split == "train" else f"{counts.overlap:,}"
            cells = (f"{sum(counts.dropped.values()):,}", f"{counts.truncated:,}")
            tokens = (_short(counts.tokens), _short(counts.loss_tokens))
            table.add_row(part.domain, split, f"{counts.kept:,}", *cells, *tokens, shared)
        text = Text(f"{part.domain}  ", style="bold")
        for stretch, bears_loss in part.sample:
            text.append(stretch, style="green" if bears_loss else "dim")
        samples.append(text)
    why = (f"{number:,} {reason}" for reason, number in reasons.items() if number)
    notes = [f"dropped: {'; '.join(why)}"] if reasons.total() else []
    lines: list[RenderableType] = [
        table,
        *(Text(note) for note in notes),
        Text("\nfirst train row of each domain; green bears loss", style="italic"),
        *samples,
    ]
    if prepared.without_test:
        names = ", ".join(prepared.without_test)
        lines.append(Text(f"no test split: {names}; the verdict will be on eval", style="yellow"))
    if prepared.prompts is not None:
        lines.append(prompts_table(prepared.prompts))
    return Group(*lines)


def prompts_table(prompts: Prompts) -> RenderableType:
    """What is asked for the format leak, and how much of the truth is in the target's format."""
    table = Table(title=f"\nformat leak of '{prompts.target}'", title_justify="left")
    table.add_column("domain", no_wrap=True)
    for name in ("prompts", "bare", "left out", "truth"):
        table.add_column(name, justify="right", no_wrap=True)
    for asked in prompts.asked:
        numbers = (asked.rows, asked.bare_rows, asked.left_out)
        table.add_row(asked.domain, *(f"{number:,}" for number in numbers), f"{asked.truth:.3f}")
    words = (
        f"truth: share of true answers in the target's format; of its own, {prompts.own:.3f}. "
        "bare: prompts that are another without their instruction"
    )
    skipped = f"no prompt to ask: {', '.join(prompts.skipped)}" if prompts.skipped else ""
    return Group(table, Text(words, style="italic"), Text(skipped, style="yellow"))


def preview_table(preview: Preview) -> RenderableType:
    """What a mixture realises, by domain; stage by stage before it, where there are several."""
    stages = () if preview.plain else (stages_table("stages", preview), Text())
    table = Table(title=f"{preview.budget}, {preview.steps:,} steps", title_justify="left")
    table.add_column("domain")
    for name in ("asked", "share", "rows", "unique", "epochs", "tokens", "loss tokens"):
        table.add_column(name, justify="right")
    for drawn in preview.drawn:
        table.add_row(
            drawn.domain,
            f"{drawn.asked:.4f}",
            f"{drawn.share:.4f}",
            f"{drawn.rows:,}",
            f"{drawn.unique_rows:,}",
            f"{drawn.epochs:.2f}",
            f"{drawn.tokens:,}",
            f"{drawn.loss_tokens:,}",
        )
    return Group(*stages, table, *(Text(note, style="yellow") for note in preview.notes))


def stages_table(title: str, preview: Preview) -> RenderableType:
    """What each stage trains and draws, by domain, and all of them together."""
    table = Table(title=title, title_justify="left")
    for name in ("stage", "trains", "domain"):
        table.add_column(name)
    for name in ("steps", "rows", "replayed", "epochs", "tokens"):
        table.add_column(name, justify="right")
    for number, leg in enumerate(preview.legs, start=1):
        _add_stage(table, number, leg)
    rows, tokens = (sum(getattr(d, what) for d in preview.drawn) for what in ("rows", "tokens"))
    table.add_row("in all", "", "", f"{preview.steps:,}", f"{rows:,}", "", "", f"{tokens:,}")
    return table


def _add_stage(table: Table, number: int, leg: Leg) -> None:
    """A row for each domain of a stage; a replayed row is one that was drawn before."""
    head = (str(number), _trains(leg.stage), f"{leg.steps:,}")
    for drawn in leg.drawn:
        if not drawn.rows:
            continue
        again = drawn.rows - drawn.unique_rows if drawn.domain in leg.stage.replay else 0
        cells = (f"{again:,}" if again else "", f"{drawn.epochs:.2f}", f"{drawn.tokens:,}")
        table.add_row(*head[:2], drawn.domain, head[2], f"{drawn.rows:,}", *cells)
        head = ("", "", "")
    table.add_section()


def _trains(stage: Stage) -> str:
    """What a stage moves, in words, and by whom a prompt or adapters are carried."""
    moved = {Trainable.WEIGHTS: ["model"], Trainable.LORA: ["adapters"], Trainable.NONE: []}
    parts = moved[stage.trainable] + (["prompt"] if stage.prompt is Prompt.TRAIN else [])
    words = " and ".join(parts)
    if stage.prompt is Prompt.FROZEN:
        words += ", prompt frozen"
    return words if stage.carriers is None else f"{words} ({', '.join(stage.carriers)})"


def estimate_table(estimate: Estimate) -> RenderableType:
    """How many trainings, how many tokens, how long."""
    table = Table(title="plan", title_justify="left")
    table.add_column("trainings")
    for name in ("number", "train tokens", "eval tokens"):
        table.add_column(name, justify="right")
    for name, number in estimate.trainings.items():
        tokens, held = number * estimate.tokens, number * estimate.eval_tokens
        table.add_row(name, f"{number:,}", f"{tokens:,}", f"{held:,}")
    whole = estimate.total
    table.add_section()
    table.add_row(
        "in all", f"{whole:,}", f"{whole * estimate.tokens:,}", f"{whole * estimate.eval_tokens:,}"
    )
    size = f"{estimate.parameters:,} parameters" if estimate.parameters else "size unknown"
    time = "time unknown" if estimate.seconds is None else f"about {_duration(estimate.seconds)}"
    words = f"{time} on {estimate.pools} pool(s); model: {size}; {estimate.basis}"
    return Group(table, Text(words))


def needs_table(needs: Needs) -> RenderableType:
    """What measuring influence takes, and the formula for its memory."""
    table = Table(title="influence, each time it is measured", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    limit = "half of what is free" if needs.limit is None else _gigabytes(needs.limit)
    rows = {
        f"linear layers looked at ({_short(needs.weights)} weights)": f"{needs.layers:,}",
        "curvature of all of them, on one worker": _gigabytes(needs.factors),
        "influence.max_memory_gb": limit,
        "layer groups": f"{needs.groups:,}",
        "curvature of the largest group, on one worker": _gigabytes(needs.group),
        f"model in training ({_short(needs.parameters)} parameters), on each of "
        f"{needs.workers} worker(s)": _gigabytes(needs.state),
        "gradients of one layer while its products are taken": _gigabytes(needs.products),
        "all three, activations aside": _gigabytes(needs.group + needs.state + needs.products),
        "gradients held in host memory, over all workers": _gigabytes(needs.gradients),
        f"training passes over {needs.rows:,} rows": f"{needs.passes:.1f}",
    }
    for what, number in rows.items():
        table.add_row(what, number)
    free = (
        f"In one group where {_gigabytes(needs.factors)} are free twice over; else in more. "
        if needs.limit is None
        else ""
    )
    words = (
        f"{free}Curvature of a group, fp32: 4 bytes x (i^2 for each distinct input of i features "
        "+ o^2 + o i for each layer of o outputs) + 24 bytes x max(i, o)^2 for one "
        "eigendecomposition. Products of one layer: 27 bytes x domains x o i. Gradients held: 16 "
        "bytes x domains x weights of the layers. Each further group costs 4/3 of a pass."
    )
    return Group(table, Text(words))


def trained_table(result: TrainResult) -> RenderableType:
    """What a single training drew and where it ended."""
    table = Table(title=f"trained: {result.spent.steps:,} steps, {result.spent.seconds:.0f} s")
    table.title_justify = "left"
    table.add_column("domain")
    splits = [s for s in ("eval", "test") if any(key.startswith(f"{s}/") for key in result.metrics)]
    columns = {f"{split} loss": f"{split}/{{}}/loss" for split in splits}
    if any(key.endswith("/format_leak") for key in result.metrics):
        columns |= {"leak": "eval/{}/format_leak", "leak, bare": "eval/{}/format_leak_bare"}
    for name in ("share", "rows", "epochs", *columns):
        table.add_column(name, justify="right")
    for drawn in result.realised:
        found = (result.metrics.get(metric.format(drawn.domain)) for metric in columns.values())
        table.add_row(
            drawn.domain,
            f"{drawn.share:.4f}",
            f"{drawn.rows:,}",
            f"{drawn.epochs:.2f}",
            *("" if value is None else f"{value:.4f}" for value in found),
        )
    return table


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e7 else f"{number / 1e6:.3g} MB"


def _short(number: int) -> str:
    """1,611,072 as 1.61M."""
    for size, suffix in ((10**9, "B"), (10**6, "M"), (10**4, "k")):
        if number >= size:
            return f"{number / (10**3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{number:,}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
