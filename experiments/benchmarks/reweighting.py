"""What reweighters cost: training time and memory with each of them over those with none.

    python experiments/benchmarks/reweighting.py
    python experiments/benchmarks/reweighting.py --device cuda --model path/to/model --rounds 3

The same Llama of random weights is trained on the same random rows, by the runner that studies use
in one process. Each timed training stands between two plain ones, and is divided by their mean; the
median of the rounds counts. All take from the job to its result, and no losses but the one
at the end are evaluated. On a CPU with one thread it is the process's own time.

Beside each ratio stands what is expected of it. A pass costs its tokens, with padding, and so many
more as a short and a long one tell apart; one without gradients a third of that. The passes are
counted. Then it is the sum of this over that of a plain training, plus DoGE's algebra, timed apart:

    MoS      ROWS rows a domain, forward only, every S steps: with b rows a domain in a step, of
             one length, ROWS / (3 b S) of the training
    DoReMi   nothing but a look-up where the reference's losses are kept; the pass that finds them
             is 1 / (3 epochs); same_step: each step's forward pass again, 1 / 3
    DoGE     passes of one domain each, which are more, smaller, and padded otherwise; K gradients
             of P parameters kept and summed, and K (K + 1) / 2 inner products of them: 8 P bytes
             to read for each. The algebra does not grow with the step's tokens, its share falls.
             Memory: K - 1 copies of the trained parameters in fp32, 4 (K - 1) P bytes

`doge_by_k` has `--rows` rows of each domain in a step, `doge_by_k_same_step` as many rows in a step
as five domains have (K of them divide it, rounded).

Peak memory is of a process for each variant: resident on a CPU, allocated on a GPU. Its steps cut
into passes of `--rows` rows with or without reweighter, so that it is the reweighter that differs
and not the cut. DoReMi's holds the pass that finds the reference's losses.

Prints tables and, last, one JSON object: `mos_ratio`, `doremi_ratio`, `doremi_with_caching_ratio`,
`doremi_same_step_ratio`, `doge_ratio`, `doge_by_k`, `doge_by_k_same_step`, `expected` by the same
keys, `spread` (third over first quartile of the plain trainings), and in MB more than without a
reweighter `mos_memory_mb`, `doremi_memory_mb`, `doge_memory_mb`, `doge_offload_memory_mb` (with
`training.offload_gradients`, which is to the GPU's relief and means nothing on a CPU), with
`parameters_mb`, one copy in fp32. Targets: MoS 1.05 at S = 100 and 6 rows, DoReMi 1.1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from raymix.core.codec import to_spec
from raymix.core.job import Stage, Status, TrainJob
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.data.batches import Item
from raymix.data.store import Table, open_table, write_table
from raymix.reweight.doge import DoGE
from raymix.reweight.doremi import DoReMi
from raymix.reweight.mos import MoS
from raymix.train.config import Setup, Training
from raymix.train.domains import DomainGradients
from raymix.train.kit import Kit
from raymix.train.local import LocalRunner
from raymix.train.measure import micro
from raymix.train.model import Model
from raymix.train.shard import World

SHAPES = {
    "tiny": (2, 32, 64, 4, 256),
    "1M": (4, 128, 384, 4, 2048),
    "10M": (8, 320, 960, 8, 2048),
    "100M": (12, 768, 2048, 12, 32768),
}
"""Layers, hidden and intermediate size, heads, vocabulary; half as many key and value heads."""
MB = 1e6
MEASURED = 5
"""Domains of what is not asked by number of domains."""
COUNTS = (2, 5, 8)


@dataclass(frozen=True)
class Variant:
    """A training: its reweighter, whether it forgets the reference's losses first, and settings."""

    reweighter: Any = None
    forgets: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Variant()


def variants(every: int) -> dict[str, Variant]:
    """All that is measured, by the beginning of its key; MoS updates `every` steps."""
    return {
        "mos": Variant(MoS(every=every)),
        # First, so that the next one finds the losses.
        "doremi_with_caching": Variant(DoReMi(), forgets=True),
        "doremi": Variant(DoReMi()),
        "doremi_same_step": Variant(DoReMi(same_step=True)),
        "doge": Variant(DoGE()),
        "doge_offload": Variant(DoGE(), settings={"offload_gradients": True}),
    }


@dataclass
class Passes:
    """Forward passes of a training, and their tokens with padding."""

    trained: int = 0
    trained_tokens: int = 0
    seen: int = 0
    seen_tokens: int = 0

    def cost(self, overhead: float) -> float:
        """In tokens of a forward and backward pass."""
        trained = self.trained_tokens + overhead * self.trained
        return trained + (self.seen_tokens + overhead * self.seen) / 3


class Bench:
    """Trainings on tables of K domains, one after another.

    Args:
        folder: for tables and losses; made.
        model: path of a model folder.
        domains: K.
        rows: of each domain in a step, on average.
        steps: of a training.
        args: device and lengths.
        accumulates: a pass has at most `rows` rows; else all of a step where that costs least.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        domains: int,
        rows: float,
        steps: int,
        args: argparse.Namespace,
        accumulates: bool = False,
    ) -> None:
        self.size, self.steps, self._model = round(domains * rows), steps, model
        self._world = World(device=torch.device(args.device))
        self._alone = args.device == "cpu" and args.threads == 1
        folder.mkdir(parents=True)
        names = tuple(f"domain-{d}" for d in range(domains))
        vocabulary = AutoConfig.from_pretrained(model).vocab_size
        counts = {"train": self.size * steps // domains + 64, "eval": 4}
        stores = {
            name: {
                split: write_rows(folder, name, split, [d, count], args.length, vocabulary)
                for split, count in counts.items()
            }
            for d, name in enumerate(names)
        }
        self._base = {
            "per_device_train_batch_size": round(rows) if accumulates else self.size,
            "gradient_accumulation_steps": domains if accumulates else 1,
            "per_device_eval_batch_size": 16,
            "max_length": args.length[1],
            "learning_rate": 1e-4,
        }
        self._setup = (model, stores, str(folder / "out"))
        self._runners: dict[str, LocalRunner] = {}
        tables = [open_table(stores[name]["train"]) for name in names]
        known = tuple(
            Domain(t.domain, t.rows, int(t.tokens.sum()), int(t.loss_tokens.sum())) for t in tables
        )
        self._even = Mixture.normalised(names, np.ones(domains))
        budget = Budget(self.size * steps)
        none, whole, free = (0.0,) * domains, (1.0,) * domains, (float("inf"),) * domains
        self._space = Space(known, budget, self._even, none, whole, free)

    def train(self, variant: Variant, steps: int | None = None) -> float:
        """Seconds for a token of one training, from its job to its result."""
        steps = steps or self.steps
        runner = self._runner(variant)
        spec = None if variant.reweighter is None else to_spec(variant.reweighter)
        stage = Stage(self._even, Budget(self.size * steps), reweighter=spec)
        job = TrainJob(1, (stage,), self._space, seed=1, reference=self._model)
        if variant.forgets:
            shutil.rmtree(Path(self._setup[2]) / "token-losses", ignore_errors=True)
        begun = self._now()
        (result,) = runner.run([job], lambda trial, point: True)
        seconds = self._now() - begun
        if result.status is not Status.DONE or result.spent.steps != steps:
            raise SystemExit(f"{variant}: {result.spent.steps} steps; {result.error}")
        return seconds / result.spent.tokens

    def counted(self, variant: Variant) -> Passes:
        """The passes of one training, which also warms up; the reference's losses are kept."""
        self.train(PLAIN if variant.settings == {} else variant, 1)  # the model is made here
        found = Passes()

        def count(module: Any, args: Any, inputs: Mapping[str, Any]) -> None:
            tokens = inputs["input_ids"].numel()
            if module.training:
                found.trained, found.trained_tokens = (
                    found.trained + 1,
                    found.trained_tokens + tokens,
                )
            else:
                found.seen, found.seen_tokens = found.seen + 1, found.seen_tokens + tokens

        hook = self.kit(variant).model.module.register_forward_pre_hook(count, with_kwargs=True)
        self.train(variant)
        hook.remove()
        return found

    def kit(self, variant: Variant = PLAIN) -> Kit:
        """Model and settings of trainings like `variant`'s, of which there was one."""
        (kit,) = self._runner(variant)._worker._kits.values()
        return kit

    def algebra(self, domains: int) -> float:
        """Seconds that DoGE keeps, compares and adds up `domains` gradients in; of one step."""
        model: Model = self.kit().model
        made = [torch.randn_like(p) for p in model.parameters.values()]
        seconds = []
        for _ in range(7):
            begun = self._now()
            gradients = DomainGradients(model.parameters, self._world, False)
            for domain in range(domains):
                for parameter, gradient in zip(model.parameters.values(), made, strict=True):
                    # The sum is made in the first one.
                    parameter.grad = gradient.clone() if domain == 0 else gradient
                gradients.keep(domain)
            gradients.gram(domains)
            gradients.combine(np.full(domains, 1.0 / domains))
            seconds.append(self._now() - begun)
        model.module.zero_grad(set_to_none=True)
        return float(np.median(seconds))

    def overhead(self) -> float:
        """What a training pass costs beside its tokens, in tokens: out of a short and a long one.

        `Pace.overhead`, by which passes are cut, is one figure for all models.
        """
        kit, device = self.kit(), self._world.device
        table, scale = kit.train[0], np.ones(len(kit.train), dtype=np.float32)
        row = int(np.argsort(table.tokens)[table.rows // 2])
        one = Item(0, (row,), int(table.tokens[row]), int(table.loss_tokens[row]))
        sizes, seconds = (1, max(2, self.size // 2)), []
        for size in sizes:
            taken = []
            for _ in range(15):
                begun = self._now()
                batch = micro([one] * size, kit.train, scale, device, kit.pace.width)
                torch.autograd.backward(kit.model.losses(batch).sum())
                taken.append(self._now() - begun)
            seconds.append(float(np.median(taken)))
        kit.model.module.zero_grad(set_to_none=True)
        few, many = (size * one.tokens for size in sizes)
        slope = max((seconds[1] - seconds[0]) / (many - few), 1e-12)
        return max(0.0, seconds[0] / slope - few)

    @property
    def tokens(self) -> float:
        """Tokens of a step, without padding, on average."""
        pairs = [(int(t.tokens.sum()), t.rows) for t in self.kit().train]
        return self.size * sum(t for t, _ in pairs) / sum(rows for _, rows in pairs)

    def _runner(self, variant: Variant) -> LocalRunner:
        key = json.dumps(dict(variant.settings))
        if key not in self._runners:
            model, stores, out = self._setup
            training = Training(**self._base, **variant.settings)
            setup = Setup({"target": model}, training, stores, out)
            self._runners[key] = LocalRunner(setup, self._world)
        return self._runners[key]

    def _now(self) -> float:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self._alone else time.perf_counter()


def write_rows(
    folder: Path, domain: str, split: str, seed: list[int], length: Sequence[int], vocabulary: int
) -> str:
    """A table of `seed[-1]` rows, of random lengths and tokens; a row's last two thirds judged."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length[0], length[1] + 1, seed[-1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    mask = np.concatenate([(np.arange(n) >= n // 3).astype(np.uint8) for n in lengths])
    path = folder / f"{domain}-{split}"
    write_table(
        Table(domain, split, path, offsets, ids, mask, np.arange(seed[-1], dtype=np.uint64))
    )
    return str(path)


def write_model(folder: Path, shape: str, length: int) -> str:
    """A Llama of random weights."""
    layers, hidden, inner, heads, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=max(length, 64),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Line:
    """A measured ratio, the quartiles of the rounds, and what was expected."""

    ratio: float
    low: float
    high: float
    expected: float
    passes: float
    padded: float
    seen: float


def compared(
    bench: Bench, wanted: Mapping[str, Variant], rounds: int, domains: int
) -> tuple[dict[str, Line], list[float]]:
    """Each of `wanted` between two plain trainings, in turns; and seconds a token of the plain."""
    counts = {name: bench.counted(variant) for name, variant in {"": PLAIN, **wanted}.items()}
    gc.collect()
    gc.freeze()
    ratios: dict[str, list[float]] = {name: [] for name in wanted}
    plain = [bench.train(PLAIN)]
    for number in range(rounds):
        names = list(wanted)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = bench.train(wanted[name])
            plain.append(bench.train(PLAIN))
            ratios[name].append(2 * taken / (plain[-1] + plain[-2]))
    overhead, once = bench.overhead(), counts[""]
    step = float(np.median(plain)) * bench.tokens
    found = {}
    for name, passes in counts.items():
        if not name:
            continue
        expected = passes.cost(overhead) / once.cost(overhead)
        if name.startswith("doge"):
            expected += bench.algebra(domains) / step
        low, middle, high = np.quantile(ratios[name], [0.25, 0.5, 0.75]).tolist()
        each = [n / bench.steps for n in (passes.trained, passes.trained_tokens)]
        seen = (passes.seen_tokens - once.seen_tokens) / bench.steps
        found[name] = Line(middle, low, high, expected, each[0], each[1], seen)
    return found, plain


def lines(title: str, found: Mapping[str, Line]) -> Iterator[str]:
    """A table; passes and tokens are a step's."""
    yield f"{title:<24} {'ratio':>6} {'quartiles':>13} {'expected':>9}" + (
        f" {'passes':>7} {'padded tokens':>14} {'forward only':>13}"
    )
    for name, line in found.items():
        yield (
            f"{name:<24} {line.ratio:>6.3f} {line.low:>6.3f}-{line.high:<6.3f} "
            f"{line.expected:>9.3f} {line.passes:>7.2f} {line.padded:>14,.0f} {line.seen:>13,.0f}"
        )


def peak(args: argparse.Namespace, name: str, model: str) -> float:
    """Peak memory in MB of a process that trains as `name` says, once."""
    command = [sys.executable, __file__, "--child", name, "--model", model]
    command += ["--device", args.device, "--rows", str(args.rows), "--domains", str(args.domains)]
    command += ["--length", *map(str, args.length), "--threads", str(args.threads)]
    # Else what is freed stays with the process, and its peak is a matter of luck.
    steady = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, env=os.environ | steady, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr or done.stdout}")
    return float(done.stdout.splitlines()[-1])


def child(args: argparse.Namespace) -> None:
    """Train once, as `args.child` says, and print the process's peak memory in MB."""
    variant = {"none": PLAIN, **variants(every=2)}[args.child]
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary) / "b", args.model, args.domains, args.rows, 4, args, True)
        bench.train(variant)
    if args.device == "cpu":
        print(_resident() / MB)
    else:
        print(torch.cuda.max_memory_allocated() / MB)


def _resident() -> int:
    """Peak resident bytes of this process; ru_maxrss begins at what its parent had on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        words = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM")).split()
        return int(words[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory(args: argparse.Namespace, model: str) -> dict[str, float]:
    """Extra MB of each reweighter over none, the median of fresh processes; prints a table."""
    names = ("none", "mos", "doremi", "doge", "doge_offload")
    peaks: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.memory_rounds):
        for name in names:
            peaks[name].append(peak(args, name, model))
    middle = {name: float(np.median(values)) for name, values in peaks.items()}
    with torch.device("meta"):
        copy = _size(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))) / MB
    copies = args.domains - 1
    print(f"\nmemory, one copy of the parameters {copy:.1f} MB, {args.domains} domains")
    print(f"{'':<24} {'peak MB':>9} {'extra MB':>9} {'copies':>7} {'spread':>7}")
    for name in names:
        extra, spread = middle[name] - middle["none"], max(peaks[name]) - min(peaks[name])
        print(f"{name:<24} {middle[name]:>9.1f} {extra:>9.1f} {extra / copy:>7.2f} {spread:>7.1f}")
    print(f"DoGE's formula: K - 1 = {copies} copies, {copies * copy:.1f} MB")
    found = {f"{name}_memory_mb": middle[name] - middle["none"] for name in names[1:]}
    return {**found, "parameters_mb": copy}


def _size(module: Any) -> int:
    """Bytes of the parameters in fp32."""
    return 4 * sum(parameter.numel() for parameter in module.parameters())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parameters", choices=SHAPES, default="1M", help="of the timed model")
    parser.add_argument("--memory-parameters", choices=SHAPES, default="10M")
    parser.add_argument("--model", help="folder or hub id; for time and memory both")
    parser.add_argument("--domains", type=int, default=MEASURED)
    parser.add_argument("--rows", type=int, default=6, help="of a domain in a step")
    parser.add_argument("--length", type=int, nargs=2, default=(20, 120), help="least and most")
    parser.add_argument("--steps", type=int, default=100, help="of MoS's; others half")
    parser.add_argument("--every", type=int, default=100, help="MoS's S; divides the steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke test; figures mean nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.parameters = args.memory_parameters = "tiny"
        args.steps = args.every = 4
        args.rounds = args.memory_rounds = 1
        args.length = (10, 30)
    if args.steps % args.every or args.steps < 4:
        parser.error(f"--every {args.every} does not divide --steps {args.steps}, or fewer than 4")
    return args


def times(args: argparse.Namespace, folder: Path, model: str) -> dict[str, Any]:
    """All ratios by key; prints the tables."""
    wanted = variants(args.every)
    if args.device == "cpu":
        del wanted["doge_offload"]
    # One update of MoS asks for many steps; the others do the same in each.
    mos, half, quarter = {"mos": wanted.pop("mos")}, args.steps // 2, args.steps // 4
    bench = Bench(folder / "mos", model, args.domains, args.rows, args.steps, args)
    found, plain = compared(bench, mos, args.rounds, args.domains)
    rest = Bench(folder / "rest", model, args.domains, args.rows, half, args)
    more, also = compared(rest, wanted, args.rounds, args.domains)
    found |= more
    size = _size(bench.kit().model.module) // 4
    print(
        f"{size:,} parameters; {args.domains} domains, steps of {bench.size} rows and "
        f"{bench.tokens:,.0f} tokens, of which each takes "
        f"{1e3 * np.median(plain) * bench.tokens:.1f} ms; MoS every {args.every} of {args.steps} "
        f"steps; {args.device}, {args.threads} threads; {args.rounds} rounds\n"
    )
    print("\n".join(lines("", found)), flush=True)
    other = {}
    for key, rows_of in (
        ("doge_by_k", lambda k: args.rows),
        ("doge_by_k_same_step", lambda k: args.rows * args.domains / k),
    ):
        other[key] = by_count(args, folder / key, model, quarter, rows_of)
        if args.domains in COUNTS:
            other[key][str(args.domains)] = found["doge"]
        other[key] = {str(k): other[key][str(k)] for k in COUNTS}
        print("\n".join(["", *lines(key, other[key])]), flush=True)
    low, high = np.quantile(plain + also, [0.25, 0.75])
    figures: dict[str, Any] = {f"{name}_ratio": line.ratio for name, line in found.items()}
    expected: dict[str, Any] = {f"{name}_ratio": line.expected for name, line in found.items()}
    for key, by in other.items():
        figures[key] = {k: line.ratio for k, line in by.items()}
        expected[key] = {k: line.expected for k, line in by.items()}
    return {**figures, "expected": expected, "spread": float(high / low)}


def by_count(
    args: argparse.Namespace,
    folder: Path,
    model: str,
    steps: int,
    rows_of: Callable[[int], float],
) -> dict[str, Line]:
    """DoGE's ratio by number of domains, but for `args.domains`."""
    made = {}
    for count in COUNTS:
        if count != args.domains:
            bench = Bench(folder / str(count), model, count, rows_of(count), steps, args)
            found, _ = compared(bench, {"doge": Variant(DoGE())}, args.rounds, count)
            made[str(count)] = found["doge"]
    return made


def rounded(value: Any) -> Any:
    """Numbers with four digits behind the point, however deep."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(float(value), 4)


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        longest = args.length[1]
        model, large = (
            args.model or write_model(folder / name, shape, longest)
            for name, shape in (("model", args.parameters), ("large", args.memory_parameters))
        )
        figures = {**times(args, folder, model), **memory(args, large)}
    print(json.dumps(rounded(figures)))


if __name__ == "__main__":
    main()
