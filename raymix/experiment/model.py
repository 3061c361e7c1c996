"""What can be known of a model without loading it: whether it can be tuned, and its size."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from raymix.core.errors import ConfigError

_KEY = "model_name_or_path"


def check_model(name: str, weights: bool = True, key: str = _KEY) -> None:
    """Refuse a local folder that holds no whole model, and models that are not decoder-only.

    `weights` False: a description will do, as nothing is going to be trained. `key`: where the
    name stands.

    Raises:
        ConfigError: says which, before anything is loaded.
    """
    path = Path(name)
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"{key}: no folder '{name}'")
        return
    config = path / "config.json"
    if not config.is_file():
        raise ConfigError(f"{key}: '{name}' holds no config.json")
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read '{config}': {error}") from None
    if not isinstance(described, dict) or "model_type" not in described:
        raise ConfigError(f"{key}: '{config}' names no model_type")
    if described.get("is_encoder_decoder"):
        raise ConfigError(
            f"{key}: '{name}' is an encoder-decoder ({described['model_type']}); "
            "raymix tunes decoder-only models"
        )
    if weights and not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise ConfigError(f"{key}: '{name}' holds no weights (*.safetensors)")
    parameters(name, key)


def context(model: str) -> int | None:
    """Positions that a local folder's model has, as its config.json says; None: it does not."""
    try:
        described = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        found = described.get("max_position_embeddings", described.get("n_positions"))
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def parameters(model: str, key: str = _KEY) -> int | None:
    """Parameters in a local folder's safetensors files, read from their headers; None: no files.

    Raises:
        ConfigError: a file is damaged or was cut short.
    """
    headers = [_header(path, key) for path in sorted(Path(model).glob("*.safetensors"))]
    sizes = [math.prod(t["shape"]) for h in headers for k, t in h.items() if k != "__metadata__"]
    return sum(sizes) or None


def _header(path: Path, key: str) -> dict[str, Any]:
    """Name, shape and place of every tensor in the file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{key}: '{path}' is no safetensors file, or damaged: {error}") from None
    if size != whole:
        raise ConfigError(f"{key}: '{path}' is damaged: it has {size} of its {whole} bytes")
    return header
