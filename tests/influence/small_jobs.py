"""Jobs that measure, and what their influences have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymix.core.codec import decode
from raymix.core.influence import Influence
from raymix.core.job import Diagnostic, Status

ROWS = {"ants": 23, "bees": 14, "cats": 1}
"""Training rows: odd numbers, and a domain of a single one."""

MEASURE = frozenset({Diagnostic.INFLUENCE})


def tiny_config(family: str):
    """About 6k parameters: two blocks, grouped queries, a gated MLP; biases in qwen2."""
    import transformers

    kinds = {
        "llama": transformers.LlamaConfig,
        "wide": transformers.LlamaConfig,
        "untied": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "gemma": transformers.GemmaConfig,
    }
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "tie_word_embeddings": True,
    }
    if family == "gemma":
        sizes["head_dim"] = 8
    if family == "untied":
        sizes["tie_word_embeddings"] = False
    if family == "wide":
        sizes |= {"hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 1}
    return kinds[family](**sizes)


def yes(point):
    return True


def influence_of(result) -> Influence:
    assert result.status is Status.DONE, result.error
    return decode(Influence, result.diagnostics["influence"])


def later(job, result, **fields):
    """The job that measures what `job` has kept."""
    assert result.status is Status.DONE, result.error
    return replace(
        job,
        trial=9,
        stages=(),
        trained=job.stages,
        start=result.checkpoint,
        keep=False,
        measure=MEASURE,
        **fields,
    )


def matrices(found: Influence) -> dict[str, np.ndarray]:
    """Every matrix of the whole model in it, by name."""
    made = {**found.estimates, **{f"damping {d}": m for d, m in found.dampings.items()}}
    made |= {f"half {i}": m for i, m in enumerate(found.halves)}
    return {name: np.asarray(matrix) for name, matrix in made.items()}


def same(left: Influence, right: Influence, within: float) -> dict[str, float]:
    """Assert that all is equal to `within` of each matrix's largest entry; returns the gaps.

    What layers contribute is held against the largest entry of their sum.
    """
    ours, theirs = matrices(left), matrices(right)
    assert ours.keys() == theirs.keys()
    gaps = {}
    for name, matrix in ours.items():
        assert np.isfinite(matrix).all(), name
        gaps[name] = float(np.abs(matrix - theirs[name]).max() / max(np.abs(matrix).max(), 1e-30))
    parts, others = (np.asarray(found.contributions) for found in (left, right))
    gaps["layers"] = float(np.abs(parts - others).max() / np.abs(ours["ekfac"]).max())
    assert max(gaps.values()) <= within, gaps
    for name in ("norms", "eval_norms", "shares", "epochs"):
        assert getattr(left, name) == pytest.approx(getattr(right, name), rel=within), name
    for name in ("domains", "layers", "rows", "factor_rows", "damping", "fisher", "notes"):
        assert getattr(left, name) == getattr(right, name), name
    return gaps
