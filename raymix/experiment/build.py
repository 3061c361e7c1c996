"""From an experiment's description to the parts of a study. Loads neither torch nor Ray."""

from __future__ import annotations

from dataclasses import replace

from raymix import search
from raymix.core.errors import ConfigError, nearest
from raymix.core.job import Json, Strategy
from raymix.core.mixture import Budget, Domain, Mixture, Space, shared_out
from raymix.core.trial import Searcher
from raymix.data.prepare import DataSpec, Prepared, with_prompts
from raymix.data.prepare import prepare as prepare_data
from raymix.experiment import algorithm
from raymix.experiment.algorithm import check_reweighter, kind_of, searcher
from raymix.experiment.config import TARGET, Experiment, SearcherSettings
from raymix.experiment.feasible import check_strategies
from raymix.experiment.model import check_model
from raymix.experiment.strategy import check_parameters, parameters
from raymix.search.perturb import Perturb
from raymix.storage.place import absolute
from raymix.study.plan import Confirm, Method, Plan, seeded
from raymix.train.config import Setup

_MOST_EPOCHS = 10_000
"""Of all data together; a budget beyond it is a slip, and to count it out would take hours."""


def data_spec(experiment: Experiment, weights: bool = True) -> DataSpec:
    """What of the experiment decides the tokenised data; `weights`: see `check_model`."""
    check_model(experiment.model_name_or_path, weights)
    for name, path in experiment.proxies.items():
        check_model(path, weights, f"proxies.{name}")
    return DataSpec(
        datasets=experiment.datasets,
        tokenizer=experiment.model_name_or_path,
        chat_template=experiment.chat_template,
        max_length=experiment.training.max_length,
        assistant_only_loss=experiment.training.assistant_only_loss,
        seed=experiment.study.seed,
        max_overlap=experiment.max_overlap,
        trust_remote_code=experiment.trust_remote_code,
        cache_dir=experiment.cache_dir,
    )


def prepare(experiment: Experiment, weights: bool = True) -> Prepared:
    """The experiment's data, tokenised; found in the cache where it was prepared before."""
    spec = data_spec(experiment, weights)
    prepared = prepare_data(spec)
    if experiment.format_leak is None:
        return prepared
    return with_prompts(prepared, spec, experiment.format_leak)


def space(experiment: Experiment, domains: tuple[Domain, ...]) -> Space:
    """The mixtures that may be proposed.

    Raises:
        ConfigError, MixtureError: budget, bounds and caps do not fit the data.
    """
    settings, names = experiment.mixture, [d.name for d in domains]
    budget = Budget(settings.budget, settings.unit)
    bounds = [settings.bounds.get(name, (0.0, 1.0)) for name in names]
    upper = tuple(high for _, high in bounds)
    if settings.prior == "uniform":
        prior = shared_out(names, [1.0] * len(names), upper)
    elif settings.prior == "proportional":
        prior = shared_out(names, [d.size(budget.unit) for d in domains], upper)
    else:
        prior = Mixture.of(settings.prior).ordered(names)
    caps = settings.max_epochs
    if not isinstance(caps, dict):
        caps = dict.fromkeys(names, float("inf") if caps is None else caps)
    found = Space(
        domains=domains,
        budget=budget,
        prior=prior,
        lower=tuple(low for low, _ in bounds),
        upper=upper,
        max_epochs=tuple(caps.get(name, float("inf")) for name in names),
        replacement=settings.replacement,
    )
    held = sum(d.size(budget.unit) for d in domains)
    if budget.amount > _MOST_EPOCHS * held:
        raise ConfigError(
            f"mixture.budget: {budget.amount} {budget.unit} are {budget.amount / held:.3g} epochs "
            f"of all data, which hold {held} {budget.unit}; at most {_MOST_EPOCHS} are taken"
        )
    return found


def strategy(experiment: Experiment) -> Strategy:
    """In which order a mixture is trained, but by searchers that have a strategy of their own.

    Raises:
        ConfigError: there is none of that name, or its fields do not fit.
    """
    return algorithm.strategy(experiment.strategy, "strategy")


def plan(experiment: Experiment, within: Space) -> Plan:
    """What the study is to do in the space `within`.

    Raises:
        ConfigError: what is to be searched, or confirmed, does not fit; there is nothing to mix.
    """
    settings, shared = experiment.search, strategy(experiment)
    methods = tuple(
        method
        for place, asked in enumerate(settings.searchers)
        for method in seeded(
            _ordered(_method(asked, experiment, within), place, experiment, shared),
            asked.seeds or settings.seeds,
        )
    )
    _check_choice(methods, within)
    check_parameters(settings.params, [method.strategy or shared for method in methods])
    found = Plan(
        space=within,
        strategy=shared,
        objective=settings.goal(),
        methods=methods,
        baselines={name: Mixture.of(shares) for name, shares in settings.baselines.items()},
        confirm=Confirm(**settings.confirm.model_dump()),
        seed=experiment.study.seed,
        bill=settings.bill,
    )
    check_strategies(experiment, found)
    return found


def setup(experiment: Experiment, prepared: Prepared) -> Setup:
    """What every training of the study shares."""
    return Setup(
        models={TARGET: experiment.model_name_or_path, **experiment.proxies},
        training=experiment.training,
        stores=prepared.stores,
        output_dir=absolute(experiment.study.folder),
        trust_remote_code=experiment.trust_remote_code,
        influence=experiment.influence,
        chat_template=experiment.chat_template,
        leak=prepared.prompts,
        contents=prepared.contents,
    )


def identity(experiment: Experiment, prepared: Prepared) -> dict[str, Json]:
    """What else the results depend on: a study is resumed only where this is unchanged.

    Of `influence:` what was changed and moves its numbers. It counts whether or not a method asks
    for influence, so that such a method can be added to a study.
    """
    influence = experiment.influence.model_dump(
        mode="json", exclude_defaults=True, exclude={"trust", "batch_size", "max_memory_gb"}
    )
    return {
        "data": prepared.fingerprint,
        "model": experiment.model_name_or_path,
        "training": experiment.training.model_dump(mode="json"),
        "workers": experiment.cluster.num_workers,
        **({"influence": influence} if influence else {}),
        **({"proxies": experiment.proxies} if experiment.proxies else {}),
        **({"format_leak": prepared.prompts.told()} if prepared.prompts else {}),
    }


def asks_influence(experiment: Experiment) -> bool:
    """Whether a searcher of the experiment has influence measured."""
    return any(kind_of(s.type, "searcher") is search.Ideal for s in experiment.search.searchers)


def _check_choice(methods: tuple[Method, ...], within: Space) -> None:
    """Refuse to search where only one domain can be trained on; its influence can be measured."""
    domains = zip(within.names, within.ceiling(), strict=True)
    free = [name for name, most in domains if most > 0]
    searched = (m for m in methods if m.num_trials and not isinstance(m.searcher, Perturb))
    method = next(searched, None)
    if len(free) < 2 and method is not None:
        raise ConfigError(
            f"datasets: '{free[0]}' is the only domain that can be trained on, so '{method.name}' "
            "has nothing to mix; describe another domain, or train on this one with raymix train"
        )


def _method(settings: SearcherSettings, experiment: Experiment, within: Space) -> Method:
    made, most = searcher(settings), experiment.search.num_trials
    limit = most if settings.num_trials is None else settings.num_trials
    if isinstance(made, search.Doubled | search.Ideal | search.Online | search.Proxy):
        # It ends by itself: more than it asks for would only make every estimate wrong.
        limit = made.most if settings.num_trials is None else min(limit, made.most)
    if isinstance(made, search.Online | search.Proxy):
        check_reweighter(made.reweighter, within)
    models = (TARGET, *experiment.proxies)
    if isinstance(made, search.Proxy) and made.model not in models:
        hint = nearest(made.model, models)
        raise ConfigError(
            f"search.searchers: Proxy.model '{made.model}' is no model{hint}; known (from "
            f"proxies): {', '.join(models)}"
        )
    name = settings.name or settings.type.rpartition(":")[2].lower()
    return Method(name, made, limit, least=_least(made, within.budget))


def _ordered(method: Method, place: int, experiment: Experiment, shared: Strategy) -> Method:
    """`method`, the searcher at `place`, with its strategy and what of it may be searched."""
    asked, own = experiment.search.searchers[place].strategy, None
    if asked is not None:
        own = algorithm.strategy(asked, f"search.searchers.{place}.strategy")
    params = parameters(experiment.search.params, own or shared)
    if isinstance(method.searcher, search.Swept) and not params:
        raise ConfigError(
            f"search.searchers.{place}: '{method.name}' has no parameter to sweep; name one of its "
            "strategy in search.params"
        )
    return replace(method, strategy=own, params=params)


def _least(made: Searcher, budget: Budget) -> float:
    """The units that the cheapest training of a searcher takes."""
    if isinstance(made, search.Doubled):
        return 2.0  # with the baseline that it looks at
    if isinstance(made, search.Ideal) and made.budget is not None:
        return made.budget / budget.amount
    if isinstance(made, search.Proxy) and made.budget is not None:
        return min(1.0, made.budget / budget.amount)
    return 1.0
