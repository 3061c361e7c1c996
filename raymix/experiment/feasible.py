"""Whether strategies can train what a study is sure to ask for: checked before anything trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raymix import search
from raymix.core.codec import from_spec
from raymix.core.errors import ConfigError, RaymixError
from raymix.core.job import Prompt, Stage, Strategy, Trainable
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.signals import PROBED, REFERENCED
from raymix.experiment.config import TARGET, Experiment
from raymix.experiment.model import context
from raymix.search.perturb import Perturb
from raymix.strategy.check import check
from raymix.study.plan import Method, Plan, baselines, check_allowed


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
        held = mixtures if method.strategy is None else {"the prior": plan.space.prior}
        held = {**held, **_given(method, within)}
        stages = _check(f"{key}.strategy", experiment, own, within, held)
        if len(stages) > 1 and experiment.search.early_stopping.scheduler == "asha":
            raise ConfigError(
                f"search.early_stopping.scheduler: asha compares losses at equal parts of the "
                f"budget, which says nothing about {type(own).__name__} of '{method.name}': it "
                "trains in stages, and its early ones are of other domains; set it to none"
            )
        _check_numbers(f"{key}.strategy", own, within, method)
        _check_reweighter(key, method, own, stages)
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


def _check_numbers(key: str, strategy: Strategy, within: Space, method: Method) -> None:
    """Refuse numbers to be searched with which the strategy cannot train the prior."""
    for each in method.params:
        for value in each.values or (each.low, each.high):
            try:
                check(strategy, within, within.prior, {each.name: value})
            except RaymixError as error:
                said = f"search.params.{each.name} {value:g}"
                raise ConfigError(f"{key}: {error} (for the prior with {said})") from None


def _check_reweighter(
    key: str, method: Method, strategy: Strategy, stages: Sequence[Stage]
) -> None:
    """Refuse a reweighter that needs what is not measured beside prompts and single adapters."""
    made = method.searcher
    if not isinstance(made, search.Online | search.Proxy) or _whole(stages):
        return
    reweighter = from_spec(made.reweighter)
    asked = sorted(reweighter.needs & (REFERENCED | PROBED))
    if asked:
        raise ConfigError(
            f"{key}: reweighter {type(reweighter).__name__} needs signal '{asked[0]}', which is "
            f"not measured where {type(strategy).__name__} trains a soft prompt or only some "
            "weights in a stage"
        )


def _given(method: Method, within: Space) -> dict[str, Mixture]:
    """The mixtures that a searcher was given and will propose as they are."""
    made = method.searcher
    found: Sequence[Mixture | Mapping[str, float]] = ()
    if isinstance(made, search.Fixed):
        found = made.mixtures
    elif isinstance(made, search.Swept) and made.mixture is not None:
        found = (made.mixture,)
    mixtures = [m if isinstance(m, Mixture) else Mixture.of(m) for m in found]
    what = f"method '{method.name}'"
    return {f"{what}, {m}": check_allowed(within, m, what) for m in mixtures}


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
    lora = any(s.trainable is Trainable.LORA and s.carriers for each in found for s in each)
    if lora and experiment.training.use_peft:
        raise ConfigError(
            f"{key}: {type(strategy).__name__} has adapters for its target alone, but with "
            "training.use_peft adapters are the weights of all rows; set it to false"
        )
    if lora and experiment.training.merge_lora:
        raise ConfigError(
            f"{key}: training.merge_lora would put the adapters of {type(strategy).__name__}'s "
            "target before the rows of every domain; set it to false"
        )
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
