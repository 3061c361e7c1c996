"""Format leak while training: greedy outputs on other domains' prompts, and how many fit.

It is evaluation, like that of the held-out rows: its forward passes are not on a training's bill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raymix.data.leak import Prompts
from raymix.data.store import Table, open_table
from raymix.train.config import Setup
from raymix.train.model import Model, core
from raymix.train.pretrained import tokenizer_at
from raymix.train.tables import prompts_here
from raymix.train.use import Use

KEPT, BARE = "format_leak", "format_leak_bare"
"""Metrics of a domain, with the instruction kept and removed."""


class Leak:
    """The prompts that are asked at each evaluation, in batches of like length.

    A batch holds prompts of one domain, kept and bare alike: domains may be served in other ways.

    Args:
        prompts: what is asked, and which format is looked for.
        names: the domains of the job; others are not asked.
        batch: prompts per forward pass of one worker.
        tokenizer: reads outputs.
    """

    def __init__(self, prompts: Prompts, names: Sequence[str], batch: int, tokenizer: Any) -> None:
        self.prompts, self.tokenizer = prompts, tokenizer
        self.metrics: list[str] = []
        self.tables: list[Table] = []
        self.domains: list[int] = []
        self.batches: list[list[tuple[int, int]]] = []
        for each in prompts.asked:
            if each.domain not in names:
                continue
            first = len(self.tables)
            for name, path in ((KEPT, each.kept), (BARE, each.bare)):
                if path is not None:
                    self.metrics.append(f"eval/{each.domain}/{name}")
                    self.tables.append(open_table(path))
                    self.domains.append(names.index(each.domain))
            places = [
                (int(length), number, row)
                for number, table in enumerate(self.tables[first:], start=first)
                for row, length in enumerate(table.tokens)
            ]
            ordered = [(number, row) for _, number, row in sorted(places)]
            self.batches += [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
        self.rows = np.array([table.rows for table in self.tables], dtype=np.float64)

    def fits(self, output: Sequence[int]) -> bool:
        """Whether generated tokens, read as text, are in the target's format."""
        text: str = self.tokenizer.decode(output, skip_special_tokens=True)
        return self.prompts.format.fits(text)


def leak_of(setup: Setup, model: str, names: Sequence[str]) -> Leak | None:
    """What is asked of the model at the path `model`; None: nothing.

    Raises:
        DataError, TrainingError: the prompts or the tokenizer cannot be read.
    """
    prompts = prompts_here(setup)
    if prompts is None:
        return None
    batch = setup.training.per_device_eval_batch_size
    return Leak(prompts, names, batch, tokenizer_at(setup.tokenizer or model, setup))


def leaks(model: Model, leak: Leak | None, use: Use) -> dict[str, float]:
    """`eval/<domain>/format_leak` and `format_leak_bare`, shares from 0 to 1; a collective call.

    Adapters as in `use`, but never with a soft prompt: that is the target's, which is not asked. (A
    domain that carries it beside the target is asked without it, too.)
    """
    if leak is None:
        return {}
    world, module, prompts = model.world, model.module, leak.prompts
    fits = torch.zeros(len(leak.tables), dtype=torch.float64, device=world.device)
    ends = [*prompts.stops, *_ends(model)]
    module.eval()
    for first in range(0, len(leak.batches), world.size):
        mine = first + world.rank
        places = leak.batches[mine] if mine < len(leak.batches) else []
        if use.adapted is not None and places:
            model.adapt(use.adapted[leak.domains[places[0][0]]])
        asked = [leak.tables[table].row(row)[0] for table, row in places]
        outputs = greedy(model, asked, prompts.max_new_tokens, ends)
        for (table, _), output in zip(places, outputs, strict=True):
            fits[table] += leak.fits(output)
    module.train()
    shares = world.summed(fits).cpu().numpy() / leak.rows
    return dict(zip(leak.metrics, shares.tolist(), strict=True))


def greedy(
    model: Model, prompts: Sequence[NDArray[np.int32]], limit: int, ends: Sequence[int]
) -> list[list[int]]:
    """The tokens that `model` thinks likeliest after each prompt; a collective call.

    Every rank makes as many forward passes as the one with the longest output. Nothing is kept
    between passes: outputs are short, and a cache of keys would need code of its own per model.

    Args:
        model: in eval mode.
        prompts: token ids of each [T]; [] where this rank has none.
        limit: most tokens of an output.
        ends: tokens that end an output; they are not part of it.
    """
    device, count = model.world.device, len(prompts)
    starts = [len(prompt) for prompt in prompts]
    ids = torch.zeros((count, max(starts, default=0) + limit), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64)).to(device)
    lengths = torch.tensor(starts, dtype=torch.long, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    last = torch.tensor(sorted(set(ends)), dtype=torch.long, device=device)
    with torch.no_grad():
        for _ in range(limit):
            if not int(model.world.summed(going.sum())):
                break
            rows = going.nonzero().flatten()
            if not len(rows):
                # The others still generate, and a sharded model needs all ranks for each pass.
                model.logits(torch.zeros((1, 2), dtype=torch.long, device=device), None, rows)
                continue
            width = int(lengths[rows].max())
            places = torch.arange(len(rows), device=device) * width + lengths[rows] - 1
            chosen = model.logits(ids[rows, :width], None, places).argmax(dim=-1)
            ended = torch.isin(chosen, last)
            ids[rows[~ended], lengths[rows[~ended]]] = chosen[~ended]
            lengths[rows[~ended]] += 1
            going[rows[ended]] = False
    stops = lengths.tolist()
    return [ids[row, starts[row] : stops[row]].tolist() for row in range(count)]


def _ends(model: Model) -> list[int]:
    """Tokens at which the model's own description ends an output."""
    found = core(model.module).generation_config.eos_token_id
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
