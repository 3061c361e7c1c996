"""A strategy, and what of it is searched, as users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raymix.core.errors import ConfigError, RaymixError
from raymix.core.job import Strategy
from raymix.core.mixture import Parameter
from raymix.strategy.tuned import settable, tuned

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StrategySettings(BaseModel):
    """In which order a mixture is trained.

    `type` is its name in `raymix.strategy`, or `module:Class` of your own; `settings` are its own
    fields. Written as a bare name, or with the fields beside `type`.
    """

    model_config = _FROZEN

    type: str = "MultiTask"
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        """Accept a bare name, and the strategy's fields beside `type`."""
        if isinstance(values, str):
            return {"type": values}
        if not isinstance(values, Mapping):
            return values
        own = values.get("settings", {})
        if not isinstance(own, Mapping):
            return values
        if values and "type" not in values:
            raise ValueError(f"needs a 'type', such as DMT, got {dict(values)!r}")
        rest = {key: value for key, value in values.items() if key not in ("type", "settings")}
        kept = {key: value for key, value in values.items() if key == "type"}
        return {**kept, "settings": {**own, **rest}}


class ParameterSettings(BaseModel):
    """What a searcher may set a number of the strategy to: a range, or one of `values`.

    `log`: evenly by its logarithm. A range may be written as `[low, high]`.
    """

    model_config = _FROZEN

    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple[float, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        if isinstance(values, list | tuple):
            if len(values) != 2:
                raise ValueError(f"must be [low, high], {{low, high}} or {{values}}, got {values}")
            return {"low": values[0], "high": values[1]}
        return values

    @model_validator(mode="after")
    def _one_of_both(self) -> ParameterSettings:
        ends = (self.low, self.high)
        listed = bool(self.values) and ends == (None, None) and not self.log
        if not listed and (self.values is not None or None in ends):
            raise ValueError("must have low and high, or values")
        return self

    def of(self, strategy: Strategy, name: str) -> Parameter:
        """The parameter `name` of the strategy.

        Raises:
            ConfigError: the strategy refuses one of its values, or it is no range.
        """
        default = float(getattr(strategy, name))
        try:
            for value in self.values or (self.low, self.high):
                tuned(strategy, {name: float(value or 0.0)})
            if self.values is not None:
                return Parameter(name, default, values=self.values)
            assert self.low is not None
            assert self.high is not None
            return Parameter(name, default, self.low, self.high, self.log)
        except RaymixError as error:
            raise ConfigError(f"search.params.{name}: {error}") from None


def parameters(asked: Mapping[str, ParameterSettings], strategy: Strategy) -> tuple[Parameter, ...]:
    """Those of `asked` that the strategy has.

    Raises:
        ConfigError: see `ParameterSettings.of`.
    """
    known = settable(strategy)
    return tuple(found.of(strategy, name) for name, found in asked.items() if name in known)


def check_parameters(
    asked: Mapping[str, ParameterSettings], strategies: Sequence[Strategy]
) -> None:
    """Refuse a parameter that no method's strategy has.

    Raises:
        ConfigError: names it and what there is.
    """
    known = {name: None for strategy in strategies for name in settable(strategy)}
    for name in asked:
        if name not in known:
            kinds = ", ".join(dict.fromkeys(type(strategy).__name__ for strategy in strategies))
            says = f"there is {', '.join(known)}" if known else "there is none"
            raise ConfigError(
                f"search.params: '{name}' is no number of a strategy that is searched ({kinds}); "
                f"{says}"
            )
