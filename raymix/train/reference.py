"""Losses of train rows under weights that do not move (a reference, the base), kept row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from raymix.core.codec import fingerprint
from raymix.core.errors import CheckpointError, TrainingError
from raymix.core.job import Json, TrainJob
from raymix.data.batches import Item
from raymix.data.store import Table
from raymix.data.stream import Ints
from raymix.storage.copies import state_of
from raymix.storage.place import drafted, os_errors, place
from raymix.train import checkpoint
from raymix.train.kit import Kit
from raymix.train.measure import micro
from raymix.train.meter import Meter
from raymix.train.model import Model, core
from raymix.train.pretrained import same_tokenizer, start_from, uses_bf16
from raymix.train.shard import local, together

Floats = NDArray[np.float32]


class TokenLosses:
    """The loss of each loss-bearing token of train rows under `weights`, by row.

    Computed once for each row: when one comes up whose losses are not known, for it and for all
    that are foreseen then. This lends the model to `weights` for a while and costs a forward pass
    over those rows, two copies of the trained weights to host memory and back, and what reading
    `weights` takes. Every worker holds 4 bytes for each loss token of the tables that it knows rows
    of; rank 0 keeps them in `<output_dir>/token-losses/<fingerprint of the weights>`, where other
    trials and later deliveries find them.

    The job is charged for each row when it first uses it, be its loss known already or not: that is
    what the method needs by itself. So a bill does not depend on what ran before or beside it. What
    others have computed saves time only, and rows that are foreseen and never used are not charged.

    Args:
        kit: model and tables.
        job: its start is what the model goes back to.
        weights: checkpoint of ours or folder in Hugging Face form; None: the pretrained weights.
        meter: counts the rows that the job uses, each once; its state says which.
    """

    def __init__(self, kit: Kit, job: TrainJob, weights: UPath | None, meter: Meter) -> None:
        self._kit, self._job, self._weights, self._meter = kit, job, weights, meter
        self._rows = [_Rows(table) for table in kit.train]
        self._folder: UPath | None = None

    def cover(self, items: Sequence[Item], ahead: Callable[[], Sequence[Ints]]) -> None:
        """See that the losses of `items` are known, and charge for them; a collective call.

        Args:
            items: of all ranks.
            ahead: gives the rows of each domain [K] that come up after them.
        """
        self._charge(items)
        if self._knows(items):
            return
        if self._folder is None:
            self._read()
            if self._knows(items):
                return
        rows = [list(later.tolist()) for later in ahead()]
        for item in items:
            rows[item.domain] += item.rows
        self._compute(rows)

    def of(self, items: Sequence[Item]) -> Floats:
        """Losses [N] of the items' loss-bearing tokens, in the order of `Micro.index`."""
        parts = [self._rows[item.domain].of(row) for item in items for row in item.rows]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def _charge(self, items: Sequence[Item]) -> None:
        """Count the rows of `items` that bear loss and that the job has not used before."""
        for d, table in enumerate(self._kit.train):
            used = [row for item in items if item.domain == d for row in item.rows]
            rows = np.array(used, dtype=np.int64)
            rows = rows[table.loss_tokens[rows] > 0]
            if len(rows):
                self._meter.looked_once(f"{table.domain} {self._weights}", rows, table.tokens)

    def _knows(self, items: Sequence[Item]) -> bool:
        return all(self._rows[item.domain].known[list(item.rows)].all() for item in items)

    def _compute(self, rows: Sequence[Sequence[int]]) -> None:
        """Find the losses of those of `rows` [K] that are not known; a collective call."""
        kit, world = self._kit, self._kit.model.world
        items = [item for d, wanted in enumerate(rows) for item in self._rows[d].missing(d, wanted)]
        items.sort(key=lambda item: (item.tokens, item.domain, item.rows))
        size = kit.setup.training.per_device_eval_batch_size
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        with _lent(kit.model, self._job, self._weights):
            found = _losses(kit, batches)
        for rank, losses in enumerate(world.gathered(found)):
            at = 0
            for item in (item for batch in batches[rank :: world.size] for item in batch):
                self._rows[item.domain].learn(item.rows[0], losses[at : at + item.loss_tokens])
                at += item.loss_tokens
        self._write({item.domain for item in items})

    def _read(self) -> None:
        """Take up what is known on disk; a collective call."""
        world = self._kit.model.world
        kept: list[tuple[Floats, NDArray[np.bool_]] | None] = []
        folder = ""
        with together(world):
            if world.first:
                _same(self._kit, self._weights)
                folder = str(self._place())
                kept = [rows.read(place(folder)) for rows in self._rows]
        self._folder = place(world.told(folder))
        for rows, found in zip(self._rows, world.told(kept), strict=True):
            if found is not None:
                rows.take(*found)

    def _write(self, domains: set[int]) -> None:
        world = self._kit.model.world
        with together(world):
            if world.first and self._folder is not None:
                for domain in sorted(domains):
                    self._rows[domain].write(self._folder)

    def _place(self) -> UPath:
        """The folder for losses under these weights, as this setup computes them."""
        setup, model = self._kit.setup, self._kit.model
        adapters = {
            key: value
            for key, value in setup.training.model_dump(mode="json").items()
            if key.startswith("lora") and core(model.module) is not model.module
        }
        bf16 = uses_bf16(setup.training, model.world)
        marks = [_mark(model.path), self._weights and _mark(str(self._weights))]
        return place(setup.output_dir) / "token-losses" / fingerprint(marks, adapters, bf16)


class _Rows:
    """One domain's losses: flat float32 of its loss tokens, row after row, and which are known."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._starts = np.concatenate([[0], np.cumsum(table.loss_tokens)])
        # Untouched zeros take no memory: a domain that never comes up costs nothing.
        self._losses = np.zeros(self._starts[-1], dtype=np.float32)
        self.known = np.asarray(table.loss_tokens == 0)

    def of(self, row: int) -> Floats:
        return self._losses[self._starts[row] : self._starts[row + 1]]

    def missing(self, domain: int, rows: Sequence[int]) -> list[Item]:
        """Those of `rows` that are not known, each an item of its own."""
        tokens, loss = self._table.tokens, self._table.loss_tokens
        unique = np.unique(np.asarray(rows, dtype=np.int64))
        return [
            Item(domain, (row,), int(tokens[row]), int(loss[row]))
            for row in unique[~self.known[unique]].tolist()
        ]

    def learn(self, row: int, losses: Floats) -> None:
        self._losses[self._starts[row] : self._starts[row + 1]] = losses
        self.known[row] = True

    def take(self, losses: Floats, known: NDArray[np.bool_]) -> None:
        """Add what another has found; what is known here stays."""
        new = known & ~self.known
        self._losses = np.where(np.repeat(new, np.diff(self._starts)), losses, self._losses)
        self.known |= known

    def read(self, folder: UPath) -> tuple[Floats, NDArray[np.bool_]] | None:
        """What `folder` has of this table; None: nothing, or nothing that is whole."""
        try:
            path = self._file(folder)
            with os_errors(path), path.open("rb") as file, np.load(file) as kept:
                losses, known = kept["losses"], np.unpackbits(kept["known"])[: len(self.known)] > 0
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        whole = losses.shape == self._losses.shape and known.shape == self.known.shape
        return (losses, known) if whole else None

    def write(self, folder: UPath) -> None:
        """Write what is known, and what another training has written meanwhile."""
        kept = self.read(folder)
        if kept is not None:
            both = _Rows(self._table)
            both.take(self._losses, self.known)
            both.take(*kept)
        else:
            both = self
        try:
            with drafted(self._file(folder)) as draft, draft.open("wb") as file:
                np.savez(file, losses=both._losses, known=np.packbits(both.known))
        except OSError as error:
            raise CheckpointError(f"cannot keep losses in {folder}: {error}") from error

    def _file(self, folder: UPath) -> UPath:
        return folder / f"{self._table.domain}-{self._table.digest}.npz"


def _losses(kit: Kit, batches: Sequence[Sequence[Item]]) -> Floats:
    """Losses of this rank's share of `batches`, every `world.size`-th; a collective call."""
    world, model = kit.model.world, kit.model
    scale = np.zeros(len(kit.train), dtype=np.float32)
    found = [np.zeros(0, dtype=np.float32)]
    with torch.no_grad():
        for first in range(0, len(batches), world.size):
            mine = first + world.rank
            items = batches[mine] if mine < len(batches) else []
            batch = micro(items, kit.train, scale, world.device, kit.pace.width)
            found.append(model.losses(batch).float().cpu().numpy())
    return np.concatenate(found)


@contextmanager
def _lent(model: Model, job: TrainJob, weights: UPath | None) -> Iterator[None]:
    """The model with `weights` in evaluation, between two steps; then all is as it was."""
    held = {name: local(p).to("cpu", copy=True) for name, p in model.parameters.items()}
    cuda = [model.world.device] if model.world.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        try:
            model.reset(job.seed)
            if weights is not None:
                start_from(model, weights)
            model.module.eval()
            yield
        finally:
            model.module.train()
            model.reset(job.seed)
        if job.start is not None:
            start_from(model, place(job.start))
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            local(parameter).copy_(held[name])


def _same(kit: Kit, weights: UPath | None) -> None:
    """Refuse weights that were trained from another base or for another tokenizer.

    Raises:
        TrainingError: says which.
    """
    if weights is None:
        return
    if not checkpoint.is_checkpoint(weights):
        same_tokenizer(weights, kit.model.path, kit.setup)
        return
    base = checkpoint.peek(weights).get("base", kit.model.path)
    if base != kit.model.path:
        raise TrainingError(
            f"the weights in {weights} were trained from '{base}', the model is "
            f"'{kit.model.path}': losses can be compared for one base only"
        )


def _mark(path: str) -> Json:
    """What changes with the weights at `path`: a checkpoint, a folder, a name on the hub."""
    folder = place(path)
    if checkpoint.is_checkpoint(folder):
        return checkpoint.peek(folder).get("files", {}).get("model.safetensors")
    if not isinstance(folder, Path):
        return [path, state_of(folder)]
    if not folder.is_dir():
        return path
    kinds = ("*.safetensors", "*.bin", "config.json")
    files = sorted(file for kind in kinds for file in folder.glob(kind))
    return [path, *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
