"""torch's random state, which dropout draws from, to plain JSON and back."""

from __future__ import annotations

import base64

import torch

from raymix.core.job import Json


def random_state(device: torch.device) -> Json:
    """The states of this process's generators, as text."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {k: base64.b64encode(bytes(v.tolist())).decode() for k, v in states.items()}


def restore_random_state(state: Json, device: torch.device) -> None:
    """Set the generators to what `random_state` returned."""
    tensors = {
        k: torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.uint8)
        for k, v in state.items()
    }
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
