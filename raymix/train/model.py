"""A causal language model as the loop sees it: built once, reset in place, token losses out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raymix.core.errors import TrainingError
from raymix.train.measure import Micro
from raymix.train.parts import Part
from raymix.train.prompt import NAME, PARAMETER, SoftPrompt, Start
from raymix.train.shard import World, fill, local, reshard, together, whole


class Model:
    """The module, the weights it starts every job from, and how its losses are read.

    `parameters` are those that a training moves in any of its stages, by name (see `open`), of
    which each stage moves its own (see `move`); the others have no gradients. The pretrained values
    of this rank's part of everything are kept in host memory, so that a reset is a copy. `dtype` is
    what the trained model is saved in.

    Args:
        path: folder or hub id.
        module: the transformers model, in peft's wrapper where it has adapters. What may move at
            all asks for gradients: FSDP2 looks once at what it will have to reduce.
        world: whose workers hold it.
        bf16: whether forward and backward run in bf16.
        dtype: what the trained model is saved in.
        start: what its soft prompt starts from, where it has one.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        world: World,
        *,
        bf16: bool,
        dtype: torch.dtype,
        start: Start | None = None,
    ) -> None:
        self.path, self.module, self.world, self.dtype = path, module, world, dtype
        self._start = start
        self._prompt: SoftPrompt | None = getattr(core(module), NAME, None)
        self._tuned = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
        self.embedding: nn.Module = core(module).get_input_embeddings()
        plain: Any = getattr(self.embedding, "base_layer", self.embedding)
        self.vocabulary = int(plain.num_embeddings)
        self._bf16 = bf16
        self._head = _Head()
        head = core(module).get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._head)
        # Only after a first forward is FSDP2 done moving its shards about in memory.
        self._headed = head is not None
        self._selects = self._probe() and self._headed
        reshard(module)
        self._named: dict[Part, dict[str, nn.Parameter]] = {part: {} for part in Part}
        for name, parameter in module.named_parameters():
            part = part_of(name)
            self._named[part][name if part is Part.ADAPTERS else plain_name(name)] = parameter
        self._movable = {p for p in module.parameters() if p.requires_grad}
        kept = [*module.named_parameters(), *module.named_buffers()]
        self._live = [local(tensor) for name, tensor in kept if part_of(name) is Part.WEIGHTS]
        self._base = [_host_copy(tensor) for tensor in self._live]
        self.open({Part.ADAPTERS if self._tuned else Part.WEIGHTS})
        self.reset(0)

    def named(self, part: Part) -> Mapping[str, nn.Parameter]:
        """All parameters of a part, whether they move or not; weights by their plain names."""
        return self._named[part]

    def open(self, parts: Collection[Part]) -> None:
        """Have `parameters` be those of `parts`; all of them move until `move` says otherwise."""
        found = [named for part, named in self._named.items() if part in parts]
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter
            for named in found
            for name, parameter in named.items()
            if parameter in self._movable
        }
        self.move(parts)

    def move(self, parts: Collection[Part]) -> None:
        """Have only the parameters of `parts` get gradients from now on."""
        reshard(self.module)
        self._moving = frozenset(parts)
        for part, named in self._named.items():
            for parameter in named.values():
                parameter.requires_grad_(part in parts and parameter in self._movable)

    def learns(self, micro: Micro) -> bool:
        """Whether a backward pass over `micro` reaches anything that moves."""
        return bool(self._moving - {Part.ADAPTERS}) or micro.adapted is not False

    def reset(self, seed: int) -> None:
        """Back to the pretrained weights; adapters and soft prompt are drawn anew from `seed`."""
        reshard(self.module)
        with torch.no_grad():
            torch._foreach_copy_(self._live, self._base)
        self.module.zero_grad(set_to_none=True)
        self.adapt(True)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self._named[Part.ADAPTERS].items():
            start = torch.zeros(parameter.shape)
            if "lora_A" in name or "lora_embedding_B" in name:
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            fill(parameter, start, self.world)
        if self._start is not None:
            self._draw(self._start, seed)

    def _draw(self, start: Start, seed: int) -> None:
        embedding: Any = self.embedding
        embedding = getattr(embedding, "base_layer", embedding)
        weight, drawn = whole(embedding.weight), None
        with together(self.world):
            if self.world.first:
                drawn = start(seed, embedding, weight.to(self.world.device))
        fill(self._named[Part.PROMPT][PARAMETER], drawn, self.world)

    def adapt(self, on: bool) -> None:
        """Switch the adapters on or off; what moves stays what it is (peft's own way changes it).

        They stay so until the next call: checkpointed blocks run again in the backward pass.
        """
        for layer in self._tuned:
            layer._disable_adapters = not on

    def moved(self) -> float:
        """Norm of what training has changed over the norm of the pretrained weights; collective.

        Adapters and soft prompt are not counted: what they start from is arbitrary.
        """
        parts = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for live, base in zip(self._live, self._base, strict=True):
            before = base.to(live.device)
            parts[0] += (live - before).double().square().sum()
            parts[1] += before.double().square().sum()
        change, whole = self.world.summed(parts).tolist()
        return float(math.sqrt(change / whole)) if whole else 0.0

    def losses(self, micro: Micro) -> Tensor:
        """Loss of each loss-bearing token of `micro` [N], nats, fp32."""
        logits = self._passed(micro)
        return cross_entropy(logits.float(), micro.targets, reduction="none")

    def judged(self, micro: Micro) -> tuple[Tensor, Tensor]:
        """The same, and whether each token is the model's greedy choice [N], from one pass."""
        logits = self._passed(micro)
        losses = cross_entropy(logits.float(), micro.targets, reduction="none")
        return losses, logits.argmax(dim=-1) == micro.targets

    def seen(self, micro: Micro) -> tuple[Tensor, Tensor]:
        """Loss of each loss-bearing token [N], and the last hidden states [P, T, H]; no gradient.

        Raises:
            TrainingError: the model has no output embedding, whose input they are.
        """
        if not self._headed:
            raise TrainingError(f"model '{self.path}' does not show its last hidden states")
        with torch.no_grad():
            self._head.keeps = True
            losses = self.losses(micro)
            states, self._head.keeps, self._head.states = self._head.states, False, None
        assert states is not None
        return losses, states

    def _passed(self, micro: Micro) -> Tensor:
        """Logits [N, V] of `micro`, by the way that it is to take through the model."""
        if micro.adapted is not None:
            self.adapt(micro.adapted)
        if self._prompt is None:
            return self.logits(micro.input_ids, micro.position_ids, micro.index)
        self._prompt.places = micro.slots
        try:
            return self.logits(micro.input_ids, micro.position_ids, micro.index)
        finally:
            self._prompt.places = None

    def logits(self, ids: Tensor, positions: Tensor | None, index: Tensor) -> Tensor:
        """Logits [N, V] at the places `index` of the flattened [P * T] tokens."""
        if self._selects:
            self._head.index = index
            logits = self._forward(ids, positions)
            self._head.index = None
            return logits[0]
        return self._forward(ids, positions).flatten(0, 1).index_select(0, index)

    def _forward(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        # No attention mask: rows are padded on the right, where a causal model never looks, and
        # without one the attention kernel takes its fast causal path.
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
        with torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self._bf16 and self.world.size == 1
        ):
            logits: Tensor = self.module(**inputs).logits
        return logits

    def _probe(self) -> bool:
        """Whether the model gives the same logits when its head sees chosen places only."""
        ids = torch.arange(8, device=self.world.device).view(2, 4) % self.vocabulary
        index = torch.tensor([1, 6], device=self.world.device)
        self.module.eval()
        with torch.no_grad():
            full = self._forward(ids, None).flatten(0, 1).index_select(0, index)
            self._head.index = index
            chosen = self._forward(ids, None)
            self._head.index = None
        return self._same(chosen, full[None])

    def isolates(self) -> bool:
        """Whether examples packed into one row are blind to each other; a collective call.

        Asked of the model itself, since it is the model's code that must heed restarting positions:
        an example has the same logits behind another as it has alone.
        """
        ids = torch.arange(24, device=self.world.device).view(1, 24) % self.vocabulary
        positions = torch.arange(24, device=self.world.device).view(1, 24) % 12
        self.module.eval()
        with torch.no_grad():
            alone = self._forward(ids[:, 12:], None)
            try:
                packed = self._forward(ids, positions)
            except TypeError:  # a model without positions
                return False
        return self._same(packed[:, 12:], alone)

    def _same(self, ours: Tensor, theirs: Tensor) -> bool:
        """Equal but for rounding, which bf16 does at the third digit."""
        if bool(theirs.isnan().any()):  # broken weights: the losses will say so
            return False
        margin = 5e-2 if self._bf16 else 1e-4
        scale = min(float(theirs.float().abs().max()), 1e6)
        return ours.shape == theirs.shape and bool(
            torch.allclose(ours.float(), theirs.float(), rtol=margin, atol=margin * scale)
        )


class _Head:
    """Keeps the places in `index` of what the output embedding is given: most bear no loss.

    What follows the head in the model's forward (scaling, soft-capping) then runs on [1, N, V].
    While it `keeps`, all that the head was given last is in `states`.
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None
        self.keeps = False
        self.states: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.keeps:
            self.states = inputs[0]
        if self.index is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self.index)[None], *inputs[1:])


def core(module: Any) -> Any:
    """The transformers model itself, without the adapters' wrapper."""
    return module.get_base_model() if isinstance(module, PeftModel) else module


def plain_name(name: str) -> str:
    """The name that a parameter has without adapters' wrappers around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def part_of(name: str) -> Part:
    """The part of the model that a parameter or buffer belongs to."""
    if plain_name(name) == PARAMETER:
        return Part.PROMPT
    return Part.ADAPTERS if ".lora_" in name else Part.WEIGHTS


def _host_copy(tensor: Tensor) -> Tensor:
    copy = tensor.to("cpu", copy=True)
    return copy.pin_memory() if tensor.is_cuda else copy
