"""raymix's influence against kronfluence 1.0.1 in its fastest setting for the same K' x K numbers.

    python experiments/benchmarks/influence.py
    python experiments/benchmarks/influence.py --device cuda --parameters 100M --rows 400

Both sides see the same Llama of random weights, the same linear layers, rows and labels (empirical
Fisher), damping, precision and forward pass, in turns; each time is the best of the rounds, of the
process alone where it has one thread on a CPU.

kronfluence has no notion of a domain. Of its settings that give all K' x K sums three are tried on
a tenth of the rows, and the fastest is timed on all; so is, once, the one that aggregates the most:

    both     query and train gradients aggregated: K' * K calls, each of which takes both
    query    queries aggregated, a score for each train row: K' calls, each over all train rows
    swapped  the same with the roles changed, as the product is symmetric: K calls, all eval rows
    train    train gradients aggregated, a score for each query: K calls, each over all eval rows

Where a setting allows, its rows are sorted by length over all domains, so that it pads less than we
do. It keeps factors and scores on disk between calls, which its public interface cannot leave out;
that it collects Python's garbage four times a call is made cheap for it.

Prints a table and, last, one JSON object: `scoring_ratio` and `fitting_ratio` (kronfluence's
seconds over ours), `scoring_ratio_both` (the same for the setting "both"), `cosine` of the two
matrices, `training_passes` (the measurement as a study runs it, with labels drawn from the model
and passes shared, in forward and backward passes over the same training rows) and, on a GPU, the
peak memory of both beyond the models, in GB. kronfluence is to be installed without what it asks
for: `pip install --no-deps kronfluence==1.0.1 einconv einops opt-einsum`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from raymix.data.batches import Item
from raymix.influence.batch import Batch, loss_sum
from raymix.influence.curvature import Corrections, covariances, eigenvectors
from raymix.influence.gradients import correct, gradients
from raymix.influence.layers import Layer, choose
from raymix.influence.measure import Plan, measure
from raymix.influence.score import scores
from raymix.train.diagnose import OVERHEAD
from raymix.train.measure import passes
from raymix.train.model import Model
from raymix.train.shard import World

DAMPING = 0.1
SHAPES = {
    "1M": (4, 128, 384, 4, 4096),
    "10M": (8, 256, 768, 8, 16384),
    "100M": (12, 768, 2048, 12, 32768),
}
"""Layers, hidden and intermediate size, heads, vocabulary; half as many key and value heads."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """A row of `tokens`; those from `judged` on bear loss."""

    tokens: NDArray[np.int64]
    judged: int
    key: int
    domain: int
    half: int


@dataclass(frozen=True, eq=False)
class Side:
    """The training or the eval rows."""

    rows: tuple[Row, ...]
    domains: int

    def of(self, domain: int) -> list[Row]:
        """Rows of one domain, the shortest first."""
        return _sorted([row for row in self.rows if row.domain == domain])

    def judged(self) -> Tensor:
        """Loss tokens by domain [K]."""
        counts = [sum(len(r.tokens) - r.judged for r in self.of(d)) for d in range(self.domains)]
        return torch.tensor(counts, dtype=torch.float64)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (len(row.tokens), row.key))


def make_side(seed: int, domains: int, rows: int, length: tuple[int, int], vocabulary: int) -> Side:
    """Random rows; a domain's tokens are likelier the lower their place in an order of its own."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(1, vocabulary + 1)
    made = []
    for domain in range(domains):
        order = np.random.default_rng([7, domain]).permutation(vocabulary)
        for number in range(rows):
            size = int(rng.integers(length[0], length[1] + 1))
            tokens = order[rng.choice(vocabulary, size, p=chance / chance.sum())]
            made.append(Row(tokens, max(1, size // 3), len(made), domain, number % 2))
    return Side(tuple(made), domains)


def collated(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Ids and mask [P, T], places and labels of judged tokens [N], owner of each token [P, T]."""
    longest = max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    owner = np.full(ids.shape, len(rows), dtype=np.int64)
    index, targets = [], []
    for place, row in enumerate(rows):
        size = len(row.tokens)
        ids[place, :size], owner[place, :size] = row.tokens, place
        index.append(place * longest + np.arange(row.judged - 1, size - 1))
        targets.append(row.tokens[row.judged :])
    found = {
        "input_ids": ids,
        "attention_mask": (owner < len(rows)).astype(np.int64),
        "index": np.concatenate(index),
        "targets": np.concatenate(targets),
        "owner": owner,
    }
    return {name: torch.from_numpy(value) for name, value in found.items()}


class Batched(Sequence[Batch]):
    """Batches as raymix makes them, domain by domain and half by half; made when looked at."""

    def __init__(self, side: Side, size: int, device: torch.device) -> None:
        self._device = device
        self._parts: list[list[Row]] = []
        for domain in range(side.domains):
            for half in (0, 1):
                rows = [row for row in side.of(domain) if row.half == half]
                items = [Item(domain, (i,), len(row.tokens), 1) for i, row in enumerate(rows)]
                cut = passes(items, size, 1, OVERHEAD[device.type])
                self._parts += [[rows[item.rows[0]] for item in part] for part in cut]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        rows = self._parts[index]
        found = {name: value.to(self._device) for name, value in collated(rows).items()}
        return Batch(
            found["input_ids"],
            None,
            found["index"],
            found["targets"],
            found["owner"],
            np.array([row.key for row in rows], dtype=np.uint64),
            torch.ones(len(rows), device=self._device),
            rows[0].domain,
            rows[0].half,
        )


class Losses(Task):
    """What kronfluence asks of a model: summed losses, by the same forward pass as ours."""

    def __init__(self, model: Model, names: list[str]) -> None:
        self._model, self._names = model, names

    def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
        """Summed loss; empirical Fisher, so that `sample` is never asked for."""
        logits = self._model.logits(batch["input_ids"], None, batch["index"])
        return loss_sum(logits, batch["targets"])

    def compute_measurement(self, batch: Any, model: Any) -> Tensor:
        """Summed loss of the eval rows."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The same layers as ours."""
        return self._names

    def get_attention_mask(self, batch: Any) -> Tensor:
        """1 at tokens, 0 at padding."""
        return batch["attention_mask"]


class Ours:
    """raymix, taken apart into what kronfluence does apart."""

    def __init__(
        self, model: Model, layers: Sequence[Layer], train: Side, held: Side, size: int
    ) -> None:
        self._model, self._layers, self._domains = model, layers, train.domains
        self._world = model.world
        self._train = Batched(train, size, self._world.device)
        self._held = Batched(held, size, self._world.device)

    def training_pass(self) -> None:
        """A forward and a backward pass over all training rows, with all weights' gradients."""
        for batch in self._train:
            logits = self._model.logits(batch.input_ids, batch.position_ids, batch.index)
            loss_sum(logits, batch.targets).backward()
        self._model.module.zero_grad(set_to_none=True)

    def fit(self, clock: Clock) -> None:
        """Covariances, eigenvectors, corrected eigenvalues."""
        model, layers, world = self._model, self._layers, self._world
        found = clock(
            "covariances", lambda: covariances(model, layers, self._train, world, "empirical")
        )
        rotations = clock("eigenvectors", lambda: eigenvectors(found, layers, world))

        def eigenvalues() -> None:
            corrections = Corrections(layers, rotations, world.device)
            correct(model, self._train, corrections, layers, "empirical")
            self._factors = corrections.factors(layers, world)

        clock("eigenvalues", eigenvalues)

    def score(self, clock: Clock) -> Tensor:
        """Influence [K', K] of mean gradients."""
        model, layers, world = self._model, self._layers, self._world
        taken = clock("train gradients", lambda: gradients(model, layers, self._train, world))
        seen = clock("eval gradients", lambda: gradients(model, layers, self._held, world))
        factors = self._factors
        found = clock(
            "products", lambda: scores(layers, factors, taken, seen, self._domains, DAMPING, world)
        )
        del self._factors  # not to be counted as the other side's memory
        return found.matrices["ekfac"].sum(0)

    def whole(self, clock: Clock) -> None:
        """The measurement as a study runs it: labels drawn from the model, passes shared."""
        plan = Plan(self._domains, DAMPING, "true")
        found = clock(
            WHOLE,
            lambda: measure(self._model, self._layers, self._train, self._held, self._world, plan),
        )
        for phase, seconds in found.seconds.items():
            clock.note(f"  {phase}", seconds)


class Theirs:
    """kronfluence."""

    SETTINGS = ("query", "swapped", "train")

    def __init__(
        self, model: Model, names: list[str], train: Side, held: Side, size: int, bf16: bool
    ) -> None:
        task = Losses(model, names)
        self._folder = tempfile.TemporaryDirectory()
        self._analyzer = Analyzer(
            "benchmark",
            prepare_model(model.module, task),
            task,
            cpu=model.world.device.type == "cpu",
            log_level=logging.CRITICAL,
            disable_tqdm=True,
            output_dir=self._folder.name,
        )
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collated))
        self._train, self._held, self._size = train, held, size
        self._amp = torch.bfloat16 if bf16 else None

    def close(self) -> None:
        """Remove what it has written."""
        self._folder.cleanup()

    def fit(self, clock: Clock) -> None:
        """Covariances, eigenvectors, corrected eigenvalues."""
        analyzer, rows = self._analyzer, _sorted(self._train.rows)
        arguments = FactorArguments(
            use_empirical_fisher=True,
            amp_dtype=self._amp,
            covariance_max_examples=None,
            lambda_max_examples=None,
        )
        common = {"factors_name": "f", "factor_args": arguments, "overwrite_output_dir": True}
        data = {"dataset": rows, "per_device_batch_size": self._size}
        clock("covariances", lambda: analyzer.fit_covariance_matrices(**common, **data))
        clock("eigenvectors", lambda: analyzer.perform_eigendecomposition(**common))
        clock("eigenvalues", lambda: analyzer.fit_lambda_matrices(**common, **data))

    def score(self, clock: Clock, setting: str) -> Tensor:
        """Influence [K', K] of mean gradients, per judged token of curvature as ours."""
        found = clock(f"setting {setting}", lambda: self._sums(setting))
        train, held = self._train.judged(), self._held.judged()
        # Its curvature is a mean over rows.
        return -found / torch.outer(held, train) * train.sum() / len(self._train.rows)

    def _sums(self, setting: str) -> Tensor:
        train, held = self._train, self._held
        every = range(train.domains)
        if setting == "both":
            cells = [
                [self._call(held.of(i), train.of(j), True, True) for j in every] for i in every
            ]
            return torch.stack([torch.cat(row, dim=1)[0] for row in cells])
        if setting == "train":
            rows = _sorted(held.rows)
            columns = [self._call(rows, train.of(j), False, True) for j in every]
            return _by_domain(torch.cat(columns, dim=1).mT, rows, train.domains).mT
        if setting == "query":
            rows = _sorted(train.rows)
            lines = [self._call(held.of(i), rows, True, False) for i in every]
            return _by_domain(torch.cat(lines), rows, train.domains)
        rows = _sorted(held.rows)
        lines = [self._call(train.of(j), rows, True, False) for j in every]
        return _by_domain(torch.cat(lines), rows, train.domains).mT

    def _call(
        self, query: Sequence[Row], train: Sequence[Row], query_sum: bool, train_sum: bool
    ) -> Tensor:
        """Scores, one row for each query or for their sum, one column for each train row."""
        self._analyzer.compute_pairwise_scores(
            scores_name="s",
            factors_name="f",
            query_dataset=query,
            train_dataset=train,
            per_device_query_batch_size=self._size,
            per_device_train_batch_size=self._size,
            score_args=ScoreArguments(
                damping_factor=None,  # 0.1 of the mean eigenvalue
                amp_dtype=self._amp,
                aggregate_query_gradients=query_sum,
                aggregate_train_gradients=train_sum,
            ),
            overwrite_output_dir=True,
        )
        return self._analyzer.load_pairwise_scores("s")["all_modules"].double()


def _by_domain(columns: Tensor, rows: Sequence[Row], domains: int) -> Tensor:
    """Sums [., K] over the columns of each domain."""
    made = torch.zeros((len(columns), domains), dtype=columns.dtype)
    return made.index_add_(1, torch.tensor([row.domain for row in rows]), columns)


class Clock:
    """The least seconds and the peak memory of each phase over all rounds."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self._cuda = device.type == "cuda"
        # One thread's own seconds are not those for which others had its core.
        alone = not self._cuda and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter
        self._before = torch.cuda.memory_allocated() if self._cuda else 0

    def __call__(self, phase: str, work: Callable[[], T]) -> T:
        """Do `work` and keep what it took under the name of `phase`."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begun = self._now()
        made = work()
        if self._cuda:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - self._before
            self.bytes[phase] = max(self.bytes.get(phase, 0), peak)
        self.note(phase, self._now() - begun)
        return made

    def note(self, phase: str, seconds: float) -> None:
        """Keep `seconds` if they are the least of `phase`."""
        self.seconds[phase] = min(seconds, self.seconds.get(phase, np.inf))

    def total(self, *phases: str) -> float:
        """Seconds of several phases."""
        return sum(self.seconds[phase] for phase in phases)


FITTING = ("covariances", "eigenvectors", "eigenvalues")
SCORING = ("train gradients", "eval gradients", "products")
WHOLE = "whole measurement"


def table(ours: Clock, theirs: Clock, setting: str) -> Iterator[str]:
    """Seconds of both sides phase by phase, ours also in training passes, and peak memory."""
    once = ours.seconds["training pass"]
    yield f"{'phase':<28} {'raymix s':>9} {'passes':>7} {'kronfluence s':>14} {'ratio':>6}"

    def line(name: str, mine: Sequence[str], other: Sequence[str] = ()) -> str:
        seconds, beside = ours.total(*mine), theirs.total(*other)
        compared = f" {beside:>14.2f} {beside / seconds:>6.2f}" if other else ""
        peaks = [
            f"{max(clock.bytes[phase] for phase in phases) / 1e9:.2f} GB"
            for clock, phases in ((ours, mine), (theirs, other))
            if phases and all(phase in clock.bytes for phase in phases)
        ]
        return f"{name:<28} {seconds:>9.2f} {seconds / once:>7.2f}{compared}  {', '.join(peaks)}"

    scored = f"setting {setting}"
    yield line("training pass", ["training pass"])
    for phase in FITTING:
        yield line(phase, [phase], [phase])
    yield line("= fitting", FITTING, FITTING)
    for phase in SCORING:
        yield line(phase, [phase])
    yield line("= scoring", SCORING, [scored])
    yield line("  against setting both", SCORING, ["setting both"])
    yield line("all at once, passes shared", [WHOLE], [*FITTING, scored])
    for phase in ours.seconds:
        if phase.startswith(" "):
            yield line(phase, [phase])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parameters", choices=SHAPES, default="1M")
    parser.add_argument("--domains", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100, help="of a domain")
    parser.add_argument("--eval-rows", type=int, help="of a domain; default: as many")
    parser.add_argument("--length", type=int, nargs=2, default=(20, 120), help="least and most")
    parser.add_argument("--batch", type=int, default=16, help="rows of one forward pass")
    parser.add_argument("--bf16", action="store_true", help="forward and backward in bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def make_model(shape: str, length: int, world: World, bf16: bool) -> Model:
    layers, hidden, inner, heads, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    module = LlamaForCausalLM(config).to(world.device)
    model = Model("random", module, world, bf16=bf16, dtype=torch.float32)
    model.module.eval()
    return model


def fastest(
    model: Model, names: list[str], train: Side, held: Side, args: argparse.Namespace
) -> str:
    """The setting of kronfluence that is quickest on a tenth of the rows, which warms it up too."""
    some = [
        Side(tuple(row for row in side.rows if not row.key % 10), side.domains)
        for side in (train, held)
    ]
    theirs = Theirs(copy.deepcopy(model), names, *some, args.batch, args.bf16)
    clock = Clock(model.world.device)
    theirs.fit(clock)
    for setting in ("query", *Theirs.SETTINGS):
        theirs.score(clock, setting)
    theirs.close()
    seconds = {setting: clock.seconds[f"setting {setting}"] for setting in Theirs.SETTINGS}
    said = ", ".join(f"{setting} {taken:.2f} s" for setting, taken in seconds.items())
    print(f"kronfluence's settings on a tenth of the rows: {said}")
    return min(seconds, key=seconds.__getitem__)


def described(
    model: Model, layers: Sequence[Layer], train: Side, held: Side, args: argparse.Namespace
) -> str:
    """What is measured, in a line."""
    size = sum(parameter.numel() for parameter in model.parameters.values())
    looked = sum(layer.weight.numel() for layer in layers)
    rows = [
        f"{sum(len(row.tokens) for row in side.rows):,} tokens in {len(side.rows)} {name} rows"
        for side, name in ((train, "training"), (held, "eval"))
    ]
    precision = "bf16" if args.bf16 else "fp32"
    return (
        f"{size:,} parameters, {len(layers)} layers of {looked:,} weights; {args.domains} domains; "
        f"{', '.join(rows)}; {precision}, {args.device}, {args.threads} threads"
    )


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    world = World(device=torch.device(args.device))
    model = make_model(args.parameters, args.length[1], world, args.bf16)
    train, held = (
        make_side(seed, args.domains, rows, tuple(args.length), model.vocabulary)
        for seed, rows in ((1, args.rows), (2, args.eval_rows or args.rows))
    )
    layers = choose(model, "all")
    print(described(model, layers, train, held, args))
    names = [layer.name for layer in layers]
    # Else each of kronfluence's calls to the garbage collector walks all that has been imported.
    gc.collect()
    gc.freeze()
    setting = fastest(model, names, train, held, args)
    gc.collect()
    theirs = Theirs(copy.deepcopy(model), names, train, held, args.batch, args.bf16)
    ours = Ours(model, layers, train, held, args.batch)
    mine, other = Clock(world.device), Clock(world.device)
    for _ in range(args.rounds):
        mine("training pass", ours.training_pass)
        ours.fit(mine)
        found = ours.score(mine)
        theirs.fit(other)
        reference = theirs.score(other, setting)
        ours.whole(mine)
    theirs.score(other, "both")
    theirs.close()
    print("\n".join(table(mine, other, setting)))
    cosine = torch.cosine_similarity(found.flatten(), reference.flatten(), dim=0)
    apart = (found - reference).abs().max() / reference.abs().max()
    print(f"kronfluence's setting: {setting}; largest difference of an entry: {apart:.1e}")
    once = mine.seconds["training pass"]
    figures = {
        "scoring_ratio": other.seconds[f"setting {setting}"] / mine.total(*SCORING),
        "scoring_ratio_both": other.seconds["setting both"] / mine.total(*SCORING),
        "fitting_ratio": other.total(*FITTING) / mine.total(*FITTING),
        "cosine": float(cosine),
        "training_passes": mine.seconds[WHOLE] / once,
    }
    if mine.bytes:
        figures["peak_gb"] = max(mine.bytes.values()) / 1e9
        figures["kronfluence_peak_gb"] = max(other.bytes.values()) / 1e9
    print(json.dumps({name: round(value, 6) for name, value in figures.items()}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
