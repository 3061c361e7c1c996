"""Networks of a few thousand weights, their rows, and their Gauss-Newton matrix written out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from raymix.data.store import Table
from raymix.influence.batch import Batch
from raymix.influence.curvature import (
    Corrections,
    Factors,
    Fisher,
    covariances,
    eigenvectors,
)
from raymix.influence.gradients import correct
from raymix.influence.layers import Layer
from raymix.train.diagnose import Batched, Sample, parts_of
from raymix.train.model import Model
from raymix.train.shard import World


class Tokenwise(nn.Module):
    """Logits of the next token from the present one alone: an embedding, then `body`."""

    def __init__(self, embedding: nn.Embedding, body: nn.Module) -> None:
        super().__init__()
        self.embedding, self.body = embedding, body

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embedding(ids))

    def get_output_embeddings(self) -> nn.Module | None:
        return None


@dataclass(eq=False)
class Stub:
    """A `Network` around a module that maps token ids [P, T] to logits [P, T, V]."""

    module: nn.Module
    world: World = field(default_factory=World)

    @property
    def embedding(self) -> nn.Module:
        return self.module.embedding

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def logits(self, ids: Tensor, positions: Tensor | None, index: Tensor) -> Tensor:
        return self.module(ids).flatten(0, 1).index_select(0, index)


def mlp(seed: int, vocabulary: int = 16, inputs: int = 12, hidden: int = 20) -> Stub:
    """Two linear layers, the first with a bias, on frozen features."""
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, vocabulary, bias=False)
    )
    embedding = nn.Embedding(vocabulary, inputs)
    embedding.weight.requires_grad_(False)
    return Stub(Tokenwise(embedding, body))


def llama(seed: int, vocabulary: int = 24, blocks: int = 2) -> Model:
    """1,920 weights in the linear layers of each block: grouped queries and a gated MLP."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return language_model(config, seed)


def language_model(config: object, seed: int) -> Model:
    """The worker's view of a random transformers model in eval mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    module.config.use_cache = False
    model = Model("tiny", module, World(), bf16=False, dtype=torch.float32)
    module.eval()
    return model


def table(
    domain: str, rows: Sequence[tuple[Sequence[int], Sequence[int]]], first: int = 0
) -> Table:
    """A table in memory of rows of (ids, mask); hashes count from `first`."""
    lengths = [len(ids) for ids, _ in rows]
    return Table(
        domain=domain,
        split="train",
        path=Path("in memory"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ids=np.concatenate([ids for ids, _ in rows]).astype(np.int32),
        mask=np.concatenate([mask for _, mask in rows]).astype(np.uint8),
        hashes=np.arange(first, first + len(rows), dtype=np.uint64),
    )


def chains(seed: int, domains: int, rows: int, vocabulary: int, prompt: int = 3) -> list[Table]:
    """Rows of 6 to 12 tokens of a Markov chain of each domain's own; the first ones are prompt."""
    made = []
    for domain in range(domains):
        rng = np.random.default_rng([seed, domain])
        moves = rng.dirichlet(np.full(vocabulary, 0.3), vocabulary)
        content = []
        for _ in range(rows):
            ids = [int(rng.integers(vocabulary))]
            for _ in range(int(rng.integers(5, 12))):
                ids.append(int(rng.choice(vocabulary, p=moves[ids[-1]])))
            content.append((ids, [0] * prompt + [1] * (len(ids) - prompt)))
        made.append(table(f"d{domain}", content, first=1000 * domain))
    return made


def everything(tables: Sequence[Table]) -> Sample:
    """All rows that bear loss, every other one in a half, at equal weight."""
    rows = []
    for held in tables:
        usable = np.flatnonzero(held.loss_tokens > 0).tolist()
        rows.append((tuple(usable[0::2]), tuple(usable[1::2])))
    count = len(tables)
    return Sample(tuple(rows), (1.0,) * count, (1 / count,) * count, (1.0,) * count)


def batched(
    network: Model | Stub,
    tables: Sequence[Table],
    sample: Sample | None = None,
    size: int = 16,
    pack: int | None = None,
) -> Batched:
    """The batches that a worker is shown; `size` rows in each, whatever that wastes on padding."""
    sample = sample or everything(tables)
    return Batched(network, tables, parts_of(sample, tables, size, pack, overhead=10**9))


def fit(network: Model | Stub, batches: Sequence[Batch], steps: int = 60, lr: float = 1e-2) -> None:
    """A short training on all batches, so that predictions are neither uniform nor sure."""
    optimizer = torch.optim.Adam(list(network.parameters.values()), lr)
    shown = [batch for batch in batches if batch.examples]
    for step in range(steps):
        batch = shown[step % len(shown)]
        logits = network.logits(batch.input_ids, batch.position_ids, batch.index)
        cross_entropy(logits, batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Written:
    """Per-token Jacobians of a network in float64, and what follows from them.

    Vectors are flat [P]: layer by layer, each layer's [o, i] by rows, a bias as the last column.
    """

    jacobians: Tensor
    logits: Tensor
    targets: Tensor
    weights: Tensor
    domains: Tensor
    sizes: tuple[int, ...]

    def gauss_newton(self) -> Tensor:
        """Of the weighted mean loss [P, P]."""
        p = self.logits.softmax(-1)
        centred = self.jacobians - (p[:, :, None] * self.jacobians).sum(1, keepdim=True)
        root = (self.weights[:, None] * p).sqrt()[:, :, None] * centred
        flat = root.flatten(0, 1)
        return flat.T @ flat / self.weights.sum()

    def gradients(self) -> Tensor:
        """Of each judged token's loss [N, P]."""
        p = self.logits.softmax(-1)
        p[torch.arange(len(p)), self.targets] -= 1
        return torch.einsum("nv,nvp->np", p, self.jacobians)

    def damping(self, matrix: Tensor, damping: float) -> Tensor:
        """`damping` times the mean of each layer's diagonal [P]."""
        parts = torch.split(matrix.diagonal(), self.sizes)
        return torch.cat([torch.full_like(part, damping * float(part.mean())) for part in parts])


def written_out(
    network: Model | Stub, layers: Sequence[Layer], batches: Sequence[Batch]
) -> Written:
    """Everything by automatic differentiation of a copy in float64, without our own hooks."""
    module = copy.deepcopy(network.module).double()
    # The worker's own hook on the head keeps chosen places only; here all are wanted.
    for part in module.modules():
        part._forward_pre_hooks.clear()
    kept = {name: value.detach() for name, value in module.named_parameters()}
    names = [(f"{layer.name}.weight", f"{layer.name}.bias") for layer in layers]

    def logits(chosen: list[Tensor], ids: Tensor, positions: Tensor | None, index: Tensor):
        values = dict(kept)
        for (weight, bias), layer, matrix in zip(names, layers, chosen, strict=True):
            values[weight] = matrix[:, : layer.module.in_features]
            if layer.bias is not None:
                values[bias] = matrix[:, -1]
        inputs = {"position_ids": positions} if positions is not None else {}
        out = functional_call(module, values, (ids,), inputs)
        out = out if isinstance(out, Tensor) else out.logits
        return out.flatten(0, 1)[index]

    start = []
    for (weight, bias), layer in zip(names, layers, strict=True):
        parts = [kept[weight]] + ([kept[bias][:, None]] if layer.bias is not None else [])
        start.append(torch.cat(parts, dim=1))
    found: list[tuple[Tensor, ...]] = []
    for batch in batches:
        if not batch.examples:
            continue
        args = (batch.input_ids, batch.position_ids, batch.index)
        jacobians = jacrev(logits, chunk_size=256)(start, *args)
        flat = torch.cat([j.flatten(2) for j in jacobians], dim=-1).detach()
        with torch.no_grad():
            value = logits(start, *args)
        domain = torch.full_like(batch.targets, batch.domain)
        weight = batch.weights[batch.owners].double()
        found.append((flat, value, batch.targets, weight, domain))
    sizes = tuple(layer.shape.out * layer.shape.columns for layer in layers)
    return Written(*(torch.cat(part) for part in zip(*found, strict=True)), sizes)


def fitted(
    network: Model | Stub,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    fisher: Fisher = "true",
    seed: int = 0,
) -> dict[str, Factors]:
    """The curvature by the two passes of the product."""
    peers = network.world
    found = covariances(network, layers, batches, peers, fisher, seed)
    corrections = Corrections(layers, eigenvectors(found, layers, peers), peers.device)
    correct(network, batches, corrections, layers, fisher, seed)
    return corrections.factors(layers, peers)


def by_layer(layers: Sequence[Layer], vectors: Tensor) -> list[Tensor]:
    """Flat vectors [..., P] as each layer's matrices [..., o, i]."""
    sizes = [layer.shape.out * layer.shape.columns for layer in layers]
    parts = torch.split(vectors, sizes, dim=-1)
    return [
        part.unflatten(-1, (layer.shape.out, layer.shape.columns))
        for layer, part in zip(layers, parts, strict=True)
    ]


def solved(
    factors: Mapping[str, Factors],
    layers: Sequence[Layer],
    vectors: Tensor,
    damping: float,
    kronecker: bool = False,
) -> Tensor:
    """Inverse damped curvature times flat vectors [..., P]."""
    made = [
        factors[layer.name].solved(part.float(), damping, kronecker).flatten(-2)
        for layer, part in zip(layers, by_layer(layers, vectors), strict=True)
    ]
    return torch.cat(made, dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` with that of `b`."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
