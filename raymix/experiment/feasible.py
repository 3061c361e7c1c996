"""Whether strategies can train what a study is sure to ask for: checked before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raymix import search
from raymix.core.errors import ConfigError, RaymixError
from raymix.core.job import Prompt, Stage, Strategy
from raymix.core.mixture import Budget, Mixture, Space
from raymix.experiment.config import TARGET, Experiment
from raymix.experiment.model import context
from raymix.search.perturb import Perturb
from raymix.strategy.check import check
from raymix.study.plan import Method, Plan, baselines


def check_strategies(experiment: Experiment, plan: Plan) -> None:
    """Refuse a strategy that cannot train the prior or a baseline, or that a searcher cannot use.

    A searcher's own strategy is held against the same mixtures, on the budgets that it trains on.

    Raises:
        ConfigError: names the key, and what does not fit.
    """
    mixtures = {"the prior": plan.space.prior}
    mixtures |= {f"baseline '{name}'": found.mixture for name, found in baselines(plan).items()}
    _check("strategy", experiment, plan.strategy, plan.space, mixtures)
    settings = experiment.search.searchers
    places = [place for place, asked in enumerate(settings) for _ in _seeds(experiment, place)]
    for place, method in zip(places, plan.methods, strict=True):
        key = f"search.searchers.{place}"
        own = method.strategy or plan.strategy
        within = plan.space
        if (budget := _budget(method)) is not None:
            within = replace(within, budget=Budget(budget, within.budget.unit))
        stages = _check(f"{key}.strategy", experiment, own, within, mixtures)
        if isinstance(method.searcher, search.Ideal | Perturb) and not _whole(stages):
            raise ConfigError(
                f"{key}: influence is measured on models that move as a whole, and "
                f"{type(own).__name__} trains a soft prompt or only some weights in a stage"
            )
        if isinstance(method.searcher, Perturb) and method.searcher.branch and len(stages) > 1:
            raise ConfigError(
                f"{key}: branches need a training of a single stage, and "
                f"{type(own).__name__} makes {len(stages)}"
            )


def _whole(stages: Sequence[Stage]) -> bool:
    """Whether all stages move the same weights, with all rows alike."""
    plain = all(s.prompt is Prompt.OFF and s.carriers is None for s in stages)
    return plain and len({stage.trainable for stage in stages}) == 1


def check_strategy(
    experiment: Experiment, strategy: Strategy, within: Space, mixture: Mixture
) -> tuple[Stage, ...]:
    """The stages of one training of `mixture`.

    Raises:
        ConfigError: they cannot be trained; says why.
    """
    return _check("strategy", experiment, strategy, within, {"the mixture": mixture})


def _check(
    key: str,
    experiment: Experiment,
    strategy: Strategy,
    within: Space,
    mixtures: Mapping[str, Mixture],
) -> tuple[Stage, ...]:
    """The stages of the mixture that makes most."""
    found: list[tuple[Stage, ...]] = []
    for name, mixture in mixtures.items():
        try:
            found.append(check(strategy, within, mixture))
        except RaymixError as error:
            raise ConfigError(f"{key}: {error} (for {name})") from None
    stages = max(found, key=len)
    if any(stage.prompt is not Prompt.OFF for stages in found for stage in stages):
        _check_prompt(key, experiment, type(strategy).__name__)
    return stages


def _check_prompt(key: str, experiment: Experiment, kind: str) -> None:
    """Refuse a prompt that leaves a row no room in a model's context."""
    training = experiment.training
    models = {TARGET: experiment.model_name_or_path, **experiment.proxies}
    for name, path in models.items():
        most = context(path)
        if most is not None and training.num_virtual_tokens + training.max_length > most:
            raise ConfigError(
                f"{key}: {kind} puts training.num_virtual_tokens "
                f"({training.num_virtual_tokens}) before rows of up to training.max_length "
                f"({training.max_length}) tokens, more than the context of model '{name}' ({most})"
            )


def _seeds(experiment: Experiment, place: int) -> range:
    return range(experiment.search.searchers[place].seeds or experiment.search.seeds)


def _budget(method: Method) -> int | None:
    """What a searcher trains on where it is not the study's budget."""
    if isinstance(method.searcher, search.Ideal | search.Proxy):
        return method.searcher.budget
    return None
