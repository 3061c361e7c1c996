"""The experiment as users write it: one frozen model, the same from Python and from YAML."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from raymix.cluster.config import Cluster, EarlyStopping
from raymix.core.errors import ConfigError, RaymixError
from raymix.core.mixture import Mixture, Unit
from raymix.data.leak import FormatLeak
from raymix.data.source import DatasetSpec
from raymix.experiment.explain import explain
from raymix.experiment.strategy import ParameterSettings, StrategySettings
from raymix.storage.place import check_url, is_url
from raymix.study.objective import KEEP_PENALTY, Objective
from raymix.train.config import InfluenceSettings, Training

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LIMITS = {"epochs": (0.0, math.inf), "moved": (0.0, math.inf)}
"""What a threshold of influence may be; the others are correlations."""

TARGET = "target"
"""The name of the model that is tuned."""

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}


class StudySettings(BaseModel):
    """The study's name, its seed, and the folder that holds all that it writes.

    `output_dir`: a path, or a URL that fsspec opens, such as s3://bucket/runs/first.
    """

    model_config = _FROZEN

    name: str = "raymix"
    seed: int = Field(0, ge=0, lt=2**31)
    output_dir: str | None = None

    @field_validator("output_dir")
    @classmethod
    def _can_be_opened(cls, value: str | None) -> str | None:
        if value is not None and is_url(value):
            check_url(value)
        elif value is not None and re.match(r"[a-z][a-z0-9+]+:/", value):
            raise ValueError(f"'{value}' is neither a path nor a URL; a URL has ://")
        return value

    @property
    def folder(self) -> str:
        """`output_dir`, or `runs/<name>`."""
        return self.output_dir or f"runs/{self.name}"


class MixtureSettings(BaseModel):
    """What a searcher may propose: see `core.mixture` for what a weight means.

    `budget` is of one training, in `unit`; "10M" and "12.5k" are understood. `prior`:
    "proportional", "uniform" or shares by domain. `bounds`: lowest and highest share by domain.
    `max_epochs`: how often a row may be seen, for all domains or by domain; None: no cap.
    """

    model_config = _FROZEN

    unit: Unit = Unit.EXAMPLES
    budget: int = Field(gt=0)
    prior: Literal["proportional", "uniform"] | dict[str, float] = "proportional"
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)
    max_epochs: float | dict[str, float] | None = None
    replacement: bool = False

    @field_validator("budget", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        """Read "10M"."""
        if not isinstance(value, str | bool):
            return value
        text = str(value).replace("_", "").replace(",", "").strip()
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kKmMbB]?)", text)
        # Decimal: 1.001k is 1001 rows, which floats would make 1000.
        amount = match and Decimal(match[1]) * _SUFFIXES.get(match[2].lower(), 1)
        if amount is None or amount % 1:
            raise ValueError(
                f"budget must be a whole number such as 12800, '12.8k' or '10M', got {value!r}"
            )
        return int(amount)

    @field_validator("unit", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return Unit.EXAMPLES if value == "rows" else value

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in value.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"bounds of '{name}' must be 0 <= low <= high <= 1, got {low}, {high}"
                )
        least = sum(low for low, _ in value.values())
        if least > 1 + 1e-6:
            raise ValueError(f"lower bounds must sum to 1 at the most, got {least:.4g}")
        return value

    @field_validator("max_epochs")
    @classmethod
    def _positive(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        caps = value if isinstance(value, dict) else {"all domains": value}
        for name, cap in caps.items():
            if cap is not None and not cap > 0:
                raise ValueError(f"max_epochs of {name} must be above 0, got {cap}")
        return value


class SearcherSettings(BaseModel):
    """One search method: `type` is its name in `raymix.search`, or `module:Class` of your own.

    `num_trials`, `seeds` None: those of `search`; `strategy` None: the experiment's. `settings` are
    the searcher's own fields.
    """

    model_config = _FROZEN

    type: str
    name: str | None = None
    num_trials: int | None = Field(None, ge=0)
    seeds: int | None = Field(None, ge=1)
    strategy: StrategySettings | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        """Accept a bare name, and the searcher's fields beside `type`."""
        if isinstance(values, str):
            return {"type": values}
        if not isinstance(values, Mapping):
            return values
        own = set(cls.model_fields)
        rest = {key: value for key, value in values.items() if key not in own}
        kept = {key: value for key, value in values.items() if key in own}
        own_settings = kept.get("settings", {})
        if not isinstance(own_settings, Mapping):
            return kept
        return {**kept, "settings": {**own_settings, **rest}}


class ConfirmSettings(BaseModel):
    """What is trained again with `seeds` fresh seeds, beside all baselines.

    `of` "best": the `top_k` best mixtures. "methods": what each method chose, each seed of it in
    its turn. `equal_size`: at the study's budget, whatever a method's own was; None: where methods
    are compared. `save`: the models are kept in `models` in the study's folder.
    """

    model_config = _FROZEN

    top_k: int = Field(3, ge=0)
    seeds: int = Field(3, ge=0)
    of: Literal["best", "methods"] = "best"
    equal_size: bool | None = None
    save: bool = False


class ObjectiveSettings(BaseModel):
    """What is minimised; see `study.objective.Objective`."""

    model_config = _FROZEN

    aggregate: Literal["mean", "worst", "weighted"] = "mean"
    weights: dict[str, float] = Field(default_factory=dict)
    kl_to_prior: float = Field(0.0, ge=0)
    keep: dict[str, StrictFloat | StrictInt | str] = Field(default_factory=dict)
    keep_penalty: float = Field(KEEP_PENALTY, ge=0)


class SearchSettings(BaseModel):
    """Which searchers run, on what objective. `num_trials` is of each seed of each searcher.

    `seeds`: each runs as a whole with so many seeds, each by itself. `bill`: training units that
    each seed of each may spend, references, proxies and influence included; a unit is one training
    on the budget. `baselines`: mixtures of your own, by name, beside uniform and proportional
    (which always run). `params`: what numbers of the strategy may be searched beside the mixture.
    """

    model_config = _FROZEN

    searchers: tuple[SearcherSettings, ...] = (SearcherSettings(type="optuna"),)
    num_trials: int = Field(12, ge=0)
    seeds: int = Field(1, ge=1)
    bill: float | None = None
    baselines: dict[str, dict[str, float]] = Field(default_factory=dict)
    objective: ObjectiveSettings = ObjectiveSettings()
    constraints: tuple[str, ...] = ()
    early_stopping: EarlyStopping = EarlyStopping()
    confirm: ConfirmSettings = ConfirmSettings()
    params: dict[str, ParameterSettings] = Field(default_factory=dict)

    @field_validator("bill")
    @classmethod
    def _whole(cls, value: float | None) -> float | None:
        if value is not None and not 1 <= value < math.inf:
            raise ValueError("must be a number of trainings, at least 1 (or none fits)")
        return value

    def goal(self) -> Objective:
        """What the study minimises.

        Raises:
            ConfigError: a weight or a constraint that means nothing.
        """
        return Objective(
            aggregate=self.objective.aggregate,
            weights=self.objective.weights,
            constraints=self.constraints,
            kl_to_prior=self.objective.kl_to_prior,
            keep=self.objective.keep,
            keep_penalty=self.objective.keep_penalty,
        )


def _tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class TrackingSettings(BaseModel):
    """Where runs are logged. `report_to`: "mlflow" or "none".

    `tracking_uri`: default `$MLFLOW_TRACKING_URI`, else a file in the working directory.
    """

    model_config = _FROZEN

    report_to: Literal["mlflow", "none"] = "mlflow"
    tracking_uri: str = Field(default_factory=_tracking_uri, min_length=1)
    experiment_name: str = "raymix"


class Experiment(BaseModel):
    """Everything a study is made from.

    `proxies`: smaller models that a searcher may learn on, folder or hub id by name; they must have
    the tokenizer of `model_name_or_path`, which is named "target". `format_leak`: what is
    measured of it at every evaluation; None: nothing.

    Raises ConfigError, which names the key, for whatever does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name_or_path: str
    datasets: tuple[DatasetSpec, ...]
    mixture: MixtureSettings
    strategy: StrategySettings = StrategySettings()
    study: StudySettings = StudySettings()
    training: Training = Training()
    search: SearchSettings = SearchSettings()
    cluster: Cluster = Cluster()
    influence: InfluenceSettings = InfluenceSettings()
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    format_leak: FormatLeak | None = None
    proxies: dict[str, str] = Field(default_factory=dict)
    chat_template: str | None = None
    max_overlap: float = Field(0.01, ge=0, le=1)
    trust_remote_code: bool = False
    cache_dir: str | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Experiment]) -> Experiment:
        try:
            experiment = handler(values)
        except ValidationError as error:
            raise ConfigError(explain(error, Experiment)) from None
        experiment._check_domains()
        experiment._check_mixtures()
        experiment._check_search()
        experiment._check_influence()
        if experiment.format_leak is not None:
            experiment.format_leak.check(experiment.names)
        return experiment

    def _check_domains(self) -> None:
        """Refuse an empty list, a name used twice, and settings of unknown domains."""
        names = [d.domain for d in self.datasets]
        if not names:
            raise ConfigError("datasets: at least one domain is needed")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"datasets: domain '{name}' is described twice")
        if TARGET in self.proxies:
            raise ConfigError(f"proxies: '{TARGET}' is model_name_or_path; give another name")
        mixture = self.mixture
        named: dict[str, Any] = {"mixture.bounds": mixture.bounds}
        if isinstance(mixture.prior, dict):
            named["mixture.prior"] = mixture.prior
        if isinstance(mixture.max_epochs, dict):
            named["mixture.max_epochs"] = mixture.max_epochs
        for key, value in named.items():
            for name in value:
                if name not in names:
                    raise ConfigError(f"{key}: unknown domain '{name}'; known: {', '.join(names)}")

    def _check_mixtures(self) -> None:
        """Refuse shares that are no mixture of the domains."""
        named = {f"search.baselines.{k}": v for k, v in self.search.baselines.items()}
        if isinstance(self.mixture.prior, dict):
            named["mixture.prior"] = self.mixture.prior
        for key, shares in named.items():
            with _under(f"{key}: "):
                Mixture.of(shares).ordered(self.names)

    def _check_search(self) -> None:
        """Refuse an objective, a guard or a stopping rule that does not fit the rest."""
        search, names, prior = self.search, self.names, self.mixture.prior
        shares = prior if isinstance(prior, dict) else dict.fromkeys(names, 1 / len(names))
        # A proportional prior is above 0 everywhere, which is all that an objective asks of it.
        within = Mixture.normalised(names, np.array([shares.get(name, 0.0) for name in names]))
        with _under("search."):
            search.model_copy(update={"constraints": ()}).goal().check(names, within)
        with _under("search.constraints: "):
            search.goal().check(names, within)
        if search.early_stopping.scheduler == "asha" and self.training.eval_steps is None:
            raise ConfigError(
                "search.early_stopping.scheduler: asha looks at evaluations during a training; "
                "set training.eval_steps"
            )

    def _check_influence(self) -> None:
        """Refuse an empty choice of layers, and thresholds that are no correlation."""
        layers = self.influence.layers
        if not layers or not all(layers):
            raise ConfigError(
                f"influence.layers: must be all, low-variance or patterns of names, got {layers!r}"
            )
        for name, limit in asdict(self.influence.trust).items():
            least, most = _LIMITS.get(name, (-1.0, 1.0))
            if not least <= limit <= most:
                raise ConfigError(
                    f"influence.trust.{name}: must be between {least:g} and {most:g}, got {limit}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in the order of every array [K]."""
        return tuple(d.domain for d in self.datasets)


@contextmanager
def _under(prefix: str) -> Iterator[None]:
    """Put the key before what is wrong with its value."""
    try:
        yield
    except RaymixError as error:
        raise ConfigError(f"{prefix}{error}") from None
