"""What is measured on a trained model: the influence of its domains, on the rows it has seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from upath import UPath

from raymix.core.errors import InfluenceError
from raymix.core.influence import PROGRESS, Influence, Matrix
from raymix.core.job import Point, Stage, TrainJob
from raymix.data.batches import Item, samplers
from raymix.data.store import Table
from raymix.influence.batch import Batch
from raymix.influence.exact import exact
from raymix.influence.gradients import gradients
from raymix.influence.layers import LOW_VARIANCE, Layer, choose
from raymix.influence.measure import Measured, Plan, measure
from raymix.influence.score import DAMPINGS, check, check_finite
from raymix.train.config import InfluenceSettings, Setup
from raymix.train.evaluate import HeldOut
from raymix.train.measure import micro, passes
from raymix.train.meter import Meter
from raymix.train.model import Model
from raymix.train.shard import local

_ROUGHLY = 1e-2
"""Relative residual of the exact solution: signs and ranks are looked at, not digits."""

_SAMPLE_SEED = 30505
"""The rows looked at are the same in every trial that has drawn them."""

OVERHEAD = {"cpu": 128, "cuda": 4096}
"""What a pass costs beside its tokens, in tokens, by device (see `measure.passes`)."""


@dataclass(frozen=True)
class Sample:
    """Rows of each domain, by half, and what they stand for.

    `rows` [K][2]; `weights` [K]: of each in the curvature, so that it is that of the loss trained
    on; `shares` [K] of the loss tokens trained on; `epochs` [K].
    """

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    weights: tuple[float, ...]
    shares: tuple[float, ...]
    epochs: tuple[float, ...]


def influence(
    job: TrainJob,
    stages: Sequence[Stage],
    setup: Setup,
    model: Model,
    optimizer: AdamW,
    tables: Sequence[Table],
    held: HeldOut,
    shelf: UPath,
    progress: Callable[[float], None],
    meter: Meter,
) -> Influence:
    """Influence of the domains on the eval losses; the model is left as it was. Collective.

    Args:
        job: names domains and seed.
        stages: that the model was trained by; their rows are looked at.
        setup: `influence` says how.
        model: as trained.
        optimizer: its second moments give the estimator "adam"; without them there is none.
        tables: train rows, one per domain.
        held: the eval rows that the study's losses are of.
        shelf: folder for what must outlive this process.
        progress: is told the fraction done.
        meter: counts what it takes.
    """
    settings, world, names = setup.influence, model.world, job.space.names
    sample = sampled(job, stages, tables, settings.train_rows, _pack(setup))
    batch = settings.batch_size or setup.training.per_device_eval_batch_size
    pack = _pack(setup)
    overhead = OVERHEAD[model.world.device.type]
    parts = parts_of(sample, tables, batch, pack, overhead)
    train = Batched(model, tables, parts)
    seen = [halves_of(held, domain) for domain in range(len(names))]
    whole = Sample(tuple(seen), (1.0,) * len(names), (), ())
    eval_parts = parts_of(whole, held.tables, batch, pack, overhead)
    evals = Batched(model, held.tables, eval_parts)
    model.module.eval()
    layers = choose(model, settings.layers)
    plan = Plan(
        len(names),
        settings.damping,
        settings.fisher,
        job.seed,
        _memory(settings, model),
        shelf,
    )
    diagonal = (lambda layer: _diagonal(layer, optimizer)) if optimizer.state else None
    try:
        found = measure(model, layers, train, evals, world, plan, diagonal, progress)
    except InfluenceError:
        # What is not finite comes to light in a covariance, which does not know whose it is.
        check_finite(gradients(model, layers, train, world), world, names)
        raise
    check(found.scores, found.train, names)
    extra, made = {}, dict(found.passes)
    if settings.exact:
        chosen = _chosen(found, settings)
        dampings = (settings.damping * found.scores.means[chosen]).tolist()
        looked = [found.layers[number] for number in chosen]
        count = len(names)
        taken = (found.train, found.held)
        products: list[float] = []
        solved = exact(
            model, looked, train, *taken, count, dampings, world, _ROUGHLY, products.append
        )
        extra["exact"], made["exact"] = _matrix(solved), sum(products)
    model.module.train()
    _pay(meter, made, parts, eval_parts)
    told_ = _told(found, extra, made, sample, settings, names, _notes(found, sample, tables))
    return replace(told_, moved=model.moved())


def _pay(
    meter: Meter, made: Mapping[str, float], train: Sequence[Part], held: Sequence[Part]
) -> None:
    """Count the passes `made`, by phase, over the rows of all workers."""
    rows, evals = (sum(item.tokens for p in parts for item in p.items) for parts in (train, held))
    for phase, passes_ in made.items():
        meter.thirds += round(3 * passes_) * (evals if phase == "eval gradients" else rows)


def told(report: Callable[[Point], bool], last: Point) -> Callable[[float], None]:
    """Report each tenth of a measurement as the `last` point over again, with a metric of its own.

    The answers are not looked at: a training that has ended cannot be stopped.
    """
    heard = 0.0

    def progress(done: float) -> None:
        nonlocal heard
        if done >= heard + 0.1:
            heard = done
            report(replace(last, metrics={**last.metrics, PROGRESS: done}))

    return progress


def silent(done: float) -> None:
    """What workers but the first report."""


def _pack(setup: Setup) -> int | None:
    return setup.training.max_length if setup.training.packing else None


def sampled(
    job: TrainJob,
    stages: Sequence[Stage],
    tables: Sequence[Table],
    most: int,
    pack: int | None,
) -> Sample:
    """At most `most` different rows of each domain, of those that `stages` have drawn."""
    count = len(tables)
    drawn: list[list[np.ndarray]] = [[] for _ in range(count)]
    for sampler in samplers(tables, job.space, stages, job.seed, pack):
        draws = sampler.take(sampler.budget.amount)
        owners = np.repeat(draws.domains, np.diff(draws.starts))
        for domain in range(count):
            drawn[domain].append(draws.rows[owners == domain])
    rows, judged, epochs, own = [], np.zeros(count), [], np.zeros(count)
    for domain, table in enumerate(tables):
        every = np.concatenate(drawn[domain]) if drawn[domain] else np.zeros(0, dtype=np.int64)
        judged[domain] = table.loss_tokens[every].sum()
        unique = np.unique(every)
        epochs.append(len(every) / max(1, len(unique)))
        usable = unique[table.loss_tokens[unique] > 0]
        order = np.random.default_rng([_SAMPLE_SEED, domain]).permutation(len(usable))
        chosen = usable[order[:most]].tolist()
        own[domain] = table.loss_tokens[chosen].sum() if chosen else 0
        rows.append((tuple(chosen[0::2]), tuple(chosen[1::2])))
    weights = np.divide(judged, own, out=np.zeros(count), where=own > 0)
    # Only their ratios matter; 1 on average keeps sums in fp32 near what they are made of.
    weights *= own.sum() / max(1.0, float(judged.sum()))
    shares = judged / max(1.0, float(judged.sum()))
    return Sample(tuple(rows), tuple(weights.tolist()), tuple(shares.tolist()), tuple(epochs))


def halves_of(held: HeldOut, domain: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The eval rows of a domain, every other one in a half."""
    items = (item for batch in held.batches for item in batch if item.domain == domain)
    rows = sorted(row for item in items for row in item.rows)
    return tuple(rows[0::2]), tuple(rows[1::2])


@dataclass(frozen=True)
class Part:
    """One pass of one worker: its items, and which rows they are of."""

    items: tuple[Item, ...]
    domain: int
    half: int
    weight: float


def parts_of(
    sample: Sample,
    tables: Sequence[Table],
    batch: int,
    pack: int | None = None,
    overhead: int = OVERHEAD["cpu"],
) -> list[Part]:
    """All passes of all workers, at most `batch` rows of like length in each.

    Which rows share a pass does not depend on the number of workers, nor do the sums, then.
    """
    parts = []
    for domain, (halves, weight) in enumerate(zip(sample.rows, sample.weights, strict=True)):
        table = tables[domain]
        for half, rows in enumerate(halves):
            ordered = sorted(rows, key=lambda row: (int(table.tokens[row]), row))
            items = list(_items(domain, ordered, table, pack))
            for together in passes(items, batch, 1, overhead) if items else ():
                parts.append(Part(tuple(together), domain, half, weight))
    return parts


def _items(domain: int, rows: Sequence[int], table: Table, pack: int | None) -> Iterator[Item]:
    """Rows one by one, or as many as fit into `pack` tokens together."""
    held: list[int] = []
    for row in rows:
        full = pack is None or sum(int(table.tokens[r]) for r in (*held, row)) > pack
        if held and full:
            yield _item(domain, held, table)
            held = []
        held.append(row)
    if held:
        yield _item(domain, held, table)


def _item(domain: int, rows: Sequence[int], table: Table) -> Item:
    tokens, judged = (int(column[list(rows)].sum()) for column in (table.tokens, table.loss_tokens))
    return Item(domain, tuple(rows), tokens, judged)


class Batched(Sequence[Batch]):
    """This worker's batches, made when they are looked at; every worker has as many.

    Of each round of passes a worker takes its own; where there is none it takes an empty one.
    """

    def __init__(self, model: Model, tables: Sequence[Table], parts: Sequence[Part]) -> None:
        self._world, self._tables = model.world, tables
        self._mine: list[Part] = []
        size, rank = self._world.size, self._world.rank
        keys = dict.fromkeys((part.domain, part.half, part.weight) for part in parts)
        for domain, half, weight in keys:
            own = [p for p in parts if (p.domain, p.half) == (domain, half)]
            for first in range(0, len(own), size):
                turn = own[first : first + size]
                empty = Part((), domain, half, weight)
                self._mine.append(turn[rank] if rank < len(turn) else empty)

    def __len__(self) -> int:
        """Passes of this worker."""
        return len(self._mine)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        """The batch of one pass."""
        part = self._mine[index]
        device = self._world.device
        scale = np.zeros(len(self._tables), dtype=np.float32)
        tensors = micro(part.items, self._tables, scale, device)
        owner = np.full(tuple(tensors.input_ids.shape), 0, dtype=np.int64)
        rows = [row for item in part.items for row in item.rows]
        owner[:] = len(rows)
        number = 0
        table = self._tables[part.domain]
        for place, item in enumerate(part.items):
            at = 0
            for row in item.rows:
                end = at + int(table.tokens[row])
                owner[place, at:end] = number
                at, number = end, number + 1
        weights = torch.full((len(rows),), part.weight, device=device)
        return Batch(
            tensors.input_ids,
            tensors.position_ids,
            tensors.index,
            tensors.targets,
            torch.from_numpy(owner).to(device),
            table.hashes[rows] if rows else np.zeros(0, dtype=np.uint64),
            weights,
            part.domain,
            part.half,
            part.weight > 0,
        )


def _memory(settings: InfluenceSettings, model: Model) -> int:
    """Bytes that curvature may take on a worker: as asked, else half of what is free; the same."""
    world = model.world
    if settings.max_memory_gb is not None:
        free = settings.max_memory_gb * 1e9
    elif world.device.type == "cuda":
        free = torch.cuda.mem_get_info(world.device)[0] / 2
    else:
        # Workers of one machine share its memory, and it is not known which they are.
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 / world.size
    return int(min(world.gathered(free)))


def _diagonal(layer: Layer, optimizer: AdamW) -> tuple[Tensor, ...]:
    """Adam's preconditioner 1 / (sqrt(v) + eps) of a layer's tensors, as sharded here."""
    made = []
    (_, beta), eps = optimizer.defaults["betas"], optimizer.defaults["eps"]
    for tensor in layer.tensors:
        state = optimizer.state[tensor]
        second = local(state["exp_avg_sq"]).float().cpu()
        made.append(1.0 / ((second / (1 - beta ** float(state["step"]))).sqrt() + eps))
    return tuple(made)


def _notes(found: Measured, sample: Sample, tables: Sequence[Table]) -> tuple[str, ...]:
    """What makes the curvature doubtful: fewer tokens than a covariance has rows."""
    rows = sum(len(half) for halves in sample.rows for half in halves)
    tokens = sum(
        int(tables[d].tokens[list(half)].sum())
        for d, halves in enumerate(sample.rows)
        for half in halves
        if half
    )
    widest = max(found.layers, key=lambda layer: max(layer.shape.out, layer.shape.columns))
    size = max(widest.shape.out, widest.shape.columns)
    if tokens >= size:
        return ()
    needed = -(-size * rows // max(1, tokens))
    return (
        f"{rows} rows of {tokens} tokens are fewer than the {size} features of layer "
        f"'{widest.name}' need: its curvature is partly damping; about {needed} rows would do",
    )


def _told(
    found: Measured,
    extra: dict[str, Matrix],
    made: dict[str, float],
    sample: Sample,
    settings: InfluenceSettings,
    names: tuple[str, ...],
    notes: tuple[str, ...],
) -> Influence:
    scores, chosen = found.scores, _chosen(found, settings)
    summed = {name: _matrix(m[chosen].sum(0)) for name, m in scores.matrices.items()}
    plain = {name: m for name, m in summed.items() if "@" not in name and "half" not in name}
    return Influence(
        domains=names,
        shares=sample.shares,
        epochs=sample.epochs,
        estimates=plain | extra,
        dampings={f"{damping:g}": summed[f"ekfac@{damping:g}"] for damping in DAMPINGS},
        halves=(summed["half0"], summed["half1"]),
        layers=tuple(found.layers[i].name for i in chosen),
        contributions=tuple(_matrix(scores.matrices["ekfac"][i]) for i in chosen),
        norms=tuple(scores.norms[chosen].sum(0).sqrt().tolist()),
        eval_norms=tuple(scores.eval_norms[chosen].sum(0).sqrt().tolist()),
        rows=tuple(sum(len(half) for half in halves) for halves in sample.rows),
        factor_rows=sum(len(half) for halves in sample.rows for half in halves),
        damping=settings.damping,
        fisher=settings.fisher,
        seconds=found.seconds,
        passes=made,
        notes=notes,
    )


def _chosen(found: Measured, settings: InfluenceSettings) -> list[int]:
    """Numbers of the layers that count: all, or those whose eigenvalues vary least."""
    count = len(found.layers)
    if settings.layers != LOW_VARIANCE:
        return list(range(count))
    most = max(1, round(settings.layer_share * count))
    return sorted(torch.argsort(found.scores.spread)[:most].tolist())


def _matrix(values: Tensor) -> Matrix:
    return tuple(tuple(row) for row in values.tolist())
