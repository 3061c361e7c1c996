"""Guards: upper bounds on eval metrics, alone or against the model before training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from raymix.core.errors import ConfigError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GUARD = re.compile(
    rf"\s*(?P<metric>\S+)\s*<=\s*(?:(?P<number>{_NUMBER})"
    rf"|base(?:\s*(?P<sign>[-+*])\s*(?P<by>{_NUMBER}))?)\s*"
)


@dataclass(frozen=True)
class Guard:
    """An upper bound on one metric: `factor * base + offset`, base being the untrained model's."""

    metric: str
    factor: float
    offset: float

    def over(
        self, metrics: Mapping[str, float], base: Mapping[str, float], split: str = "eval"
    ) -> float:
        """How far the metric lies above its bound, negative where below it; NaN if unknown.

        `split` "test": the same of the test losses.
        """
        metric, bound = self.metric.replace("eval/", f"{split}/", 1), self.offset
        if self.factor:
            bound += self.factor * base.get(metric, math.nan)
        return metrics.get(metric, math.nan) - bound

    def excess(self, metrics: Mapping[str, float], base: Mapping[str, float]) -> float:
        """By how much the metric lies above its bound, 0 if it does not; infinite if unknown."""
        over = self.over(metrics, base)
        return math.inf if math.isnan(over) else max(0.0, over)


@lru_cache(maxsize=256)
def parse_guard(text: str) -> Guard:
    """Read `eval/chat/loss <= base + 0.02`, `... <= base * 1.05` or `... <= 1.5`."""
    match = _GUARD.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"cannot read the constraint '{text}'; write for instance "
            "'eval/chat/loss <= base + 0.02' or 'eval/chat/loss <= 1.5'"
        )
    metric = match["metric"]
    if not metric.startswith("eval/"):
        raise ConfigError(
            f"constraint '{text}': only eval metrics can be guarded (test is seen by nothing "
            f"before the verdict), got '{metric}'"
        )
    if match["number"] is not None:
        return Guard(metric, 0.0, float(match["number"]))
    by = float(match["by"] or 0.0)
    if match["sign"] == "*":
        return Guard(metric, by, 0.0)
    return Guard(metric, 1.0, -by if match["sign"] == "-" else by)


def parse_margin(name: str, margin: float | str) -> Guard:
    """The guard of `keep: {chat: 0.02}` (nats per token above the base) or `{chat: 2%}` (of it)."""
    text = margin.strip() if isinstance(margin, str) else ""
    try:
        size = float(text.removesuffix("%")) if isinstance(margin, str) else float(margin)
    except ValueError:
        size = math.nan
    plain = isinstance(margin, bool) or (text and not text.endswith("%"))
    if plain or not math.isfinite(size) or size < 0:
        raise ConfigError(
            f"objective.keep.{name} must be a margin >= 0 over the base model's loss, in nats per "
            f"token (0.02) or as a part of it (2%), got {margin!r}"
        )
    metric = f"eval/{name}/loss"
    return Guard(metric, 1.0 + size / 100, 0.0) if text else Guard(metric, 1.0, size)
