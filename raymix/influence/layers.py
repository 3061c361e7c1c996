"""Which layers' weights influence is taken over: linear ones, by name, each used once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from raymix.core.errors import InfluenceError, nearest
from raymix.influence.batch import Network
from raymix.influence.memory import Shape

ALL, LOW_VARIANCE = "all", "low-variance"

Hears = Callable[["Layer", Tensor], None]


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer with its parameters; `bias` None: it has none, or it is frozen."""

    shape: Shape
    module: nn.Linear
    weight: Tensor
    bias: Tensor | None

    @property
    def name(self) -> str:
        """Its name in the model."""
        return self.shape.name

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its parameters, the weight first."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def choose(network: Network, wanted: str | Sequence[str]) -> tuple[Layer, ...]:
    """The layers that `wanted` names, in the order of the forward pass; a collective call.

    Args:
        network: is run forward once, to see which layers are given the very same input.
        wanted: "all" or "low-variance" (which looks at all first), or patterns of names.

    Raises:
        InfluenceError: nothing matches, a pattern matches the head, or a layer cannot be dealt
            with: shares its weight (tied), runs twice, or is not given whole rows.
    """
    module = network.module
    named = match(module, network.parameters, wanted)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for parameter in parameters.values())
    for name in named:
        if uses[id(parameters[f"{name}.weight"])] > 1:
            raise InfluenceError(
                f"layer '{name}' shares its weight with another (tied): its curvature is not that "
                "of either; leave it out by influence.layers"
            )
    sources = _sources(network, named)
    found = []
    for name in sources:
        linear = named[name]
        bias = parameters.get(f"{name}.bias")
        bias = bias if f"{name}.bias" in network.parameters else None
        columns = linear.in_features + (bias is not None)
        source = sources[name] if bias is None else f"{sources[name]} and 1"
        shape = Shape(name, source, linear.out_features, columns)
        found.append(Layer(shape, linear, parameters[f"{name}.weight"], bias))
    return tuple(found)


def match(
    module: nn.Module, trained: Collection[str], wanted: str | Sequence[str]
) -> dict[str, nn.Linear]:
    """Linear layers by name: those that `wanted` names whose weight is in `trained`."""
    inner: Any = module
    head = inner.get_output_embeddings()
    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    moved = {n: part for n, part in linear.items() if f"{n}.weight" in trained}
    heads = {name for name, part in linear.items() if part is head}
    if wanted in (ALL, LOW_VARIANCE):
        found = {name: part for name, part in moved.items() if name not in heads}
        patterns: Sequence[str] = ()
    else:
        patterns = (wanted,) if isinstance(wanted, str) else wanted
        found = {n: p for n, p in moved.items() if _named(n, patterns)}
    # A tied head is not among those moved: its weight goes by the embedding's name.
    for name in heads:
        if not (_named(name, patterns) and linear[name].weight.requires_grad):
            continue
        raise InfluenceError(
            f"influence.layers {list(patterns)} matches the head '{name}', whose curvature over "
            "the whole vocabulary is not taken; choose narrower patterns"
        )
    if not found:
        raise InfluenceError(_nothing(module, moved, patterns))
    return found


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _nothing(module: nn.Module, moved: Collection[str], patterns: Sequence[str]) -> str:
    if patterns and moved:
        close = nearest(patterns[0], moved)
        some = ", ".join(list(moved)[:3])
        return f"influence.layers {list(patterns)} matches no layer{close}; there are {some}, ..."
    others = Counter(type(part).__name__ for part in module.modules() if not list(part.children()))
    kinds = ", ".join(kind for kind, _ in others.most_common(5))
    return f"the model has no linear layer that training moves (it is made of {kinds})"


def _sources(network: Network, named: dict[str, nn.Linear]) -> dict[str, str]:
    """For each layer the first one with the very same input, in the order of the forward pass."""
    # References are kept so that no tensor takes over the identity of one that is gone.
    seen: dict[int, tuple[str, Tensor]] = {}
    sources: dict[str, str] = {}

    def look(name: str, x: Tensor) -> None:
        if name in sources:
            raise InfluenceError(
                f"layer '{name}' runs twice in one forward pass, which influence cannot tell "
                "apart; leave it out by influence.layers"
            )
        if x.shape[:-1] != (2, 4):
            raise InfluenceError(
                f"layer '{name}' is given {list(x.shape)} and not whole rows (a routed expert?); "
                "leave it out by influence.layers"
            )
        sources[name] = seen.setdefault(id(x), (name, x))[0]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: look(name, inputs[0])

    handles = [part.register_forward_pre_hook(hook(name)) for name, part in named.items()]
    try:
        device = next(iter(network.parameters.values())).device
        ids = torch.zeros((2, 4), dtype=torch.long, device=device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network.logits(ids, None, torch.tensor([1, 6], device=device))
    finally:
        for handle in handles:
            handle.remove()
    return sources


@contextmanager
def tapped(network: Network, layers: Sequence[Layer], fed: Hears, graded: Hears) -> Iterator[Tap]:
    """Hear of the inputs of `layers` and of the loss's gradients by their outputs.

    `fed` is told of a layer and its input [P, T, in] in each forward pass, `graded` of the gradient
    [P, T, out] in each backward pass. Recomputed forwards (activation checkpointing) are not told.
    """
    tap = Tap()

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hears(gradient: Tensor) -> None:
            if tap.listens:
                graded(layer, gradient)

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if tap.forward:
                # What is made of inputs is made in fp32, also where the model runs in bf16.
                with torch.autocast(inputs[0].device.type, enabled=False):
                    fed(layer, inputs[0].detach())
                output.register_hook(hears)  # type: ignore[no-untyped-call]

        return after

    def embedded(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # All layers depend on it, so a backward pass to it alone goes by all of them.
        if tap.forward:
            tap.root = output if output.requires_grad else output.requires_grad_()

    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers]
    handles.append(network.embedding.register_forward_hook(embedded))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield tap
    finally:
        for handle in handles:
            handle.remove()


class Tap:
    """What is listened to just now, and the embedding's output of the last forward pass."""

    def __init__(self) -> None:
        self.forward = False
        self.listens = False
        self.root: Tensor | None = None
