"""From an experiment's description to the parts of a study. Loads neither torch nor Ray."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from raymix import search
from raymix.core.codec import fingerprint
from raymix.core.errors import ConfigError, RaymixError
from raymix.core.job import Json
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.core.trial import Searcher
from raymix.data.prepare import DataSpec, Prepared
from raymix.data.prepare import prepare as prepare_data
from raymix.experiment.config import Experiment, SearcherSettings
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan, baselines
from raymix.train.config import Setup


def data_spec(experiment: Experiment) -> DataSpec:
    """What of the experiment decides the tokenised data."""
    check_model(experiment.model_name_or_path)
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


def prepare(experiment: Experiment) -> Prepared:
    """The experiment's data, tokenised; found in the cache where it was prepared before."""
    return prepare_data(data_spec(experiment))


def check_model(name: str) -> None:
    """Refuse a local folder that holds no model, and models that are not decoder-only.

    Raises:
        ConfigError: says which, before anything is loaded.
    """
    path = Path(name)
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"model_name_or_path: no folder '{name}'")
        return
    config = path / "config.json"
    if not config.is_file():
        raise ConfigError(f"model_name_or_path: '{name}' holds no config.json")
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model_name_or_path: cannot read '{config}': {error}") from None
    if described.get("is_encoder_decoder"):
        raise ConfigError(
            f"model_name_or_path: '{name}' is an encoder-decoder ({described.get('model_type')}); "
            "raymix tunes decoder-only models"
        )


def space(experiment: Experiment, domains: tuple[Domain, ...]) -> Space:
    """The mixtures that may be proposed."""
    settings, names = experiment.mixture, [d.name for d in domains]
    budget = Budget(settings.budget, settings.unit)
    if settings.prior == "uniform":
        prior = Mixture.normalised(names, np.ones(len(names)))
    elif settings.prior == "proportional":
        prior = Mixture.normalised(names, [d.size(budget.unit) for d in domains])
    else:
        prior = Mixture.of(settings.prior).ordered(names)
    bounds = [settings.bounds.get(name, (0.0, 1.0)) for name in names]
    caps = settings.max_epochs
    each = caps if isinstance(caps, dict) else dict.fromkeys(names, caps or float("inf"))
    return Space(
        domains=domains,
        budget=budget,
        prior=prior,
        lower=tuple(low for low, _ in bounds),
        upper=tuple(high for _, high in bounds),
        max_epochs=tuple(each.get(name, float("inf")) for name in names),
        replacement=settings.replacement,
    )


def plan(experiment: Experiment, within: Space) -> Plan:
    """What the study is to do in the space `within`."""
    settings = experiment.search
    objective = Objective(
        aggregate=settings.objective.aggregate,
        weights=settings.objective.weights,
        constraints=settings.constraints,
        kl_to_prior=settings.objective.kl_to_prior,
    )
    return Plan(
        space=within,
        strategy=MultiTask(),
        objective=objective,
        methods=tuple(_method(s, settings.num_trials) for s in settings.searchers),
        baselines={name: Mixture.of(shares) for name, shares in settings.baselines.items()},
        confirm=Confirm(settings.confirm.top_k, settings.confirm.seeds),
        seed=experiment.study.seed,
    )


def trials_planned(experiment: Experiment) -> int:
    """How many trials the study will ask for in all, the base model's evaluation included."""
    study = plan(experiment, space(experiment, prepare(experiment).domains))
    fixed, confirm = len(baselines(study)), study.confirm
    searched = sum(method.num_trials for method in study.methods)
    return 1 + fixed + searched + (min(confirm.top_k, searched) + fixed) * confirm.seeds


def setup(experiment: Experiment, prepared: Prepared) -> Setup:
    """What every training of the study shares."""
    return Setup(
        models={"target": experiment.model_name_or_path},
        training=experiment.training,
        stores=prepared.stores,
        output_dir=str(Path(experiment.study.folder).resolve()),
        trust_remote_code=experiment.trust_remote_code,
        chat_template=experiment.chat_template,
    )


def identity(experiment: Experiment, prepared: Prepared) -> dict[str, Json]:
    """What else the results depend on: a study is resumed only where this is unchanged."""
    return {
        "data": prepared.fingerprint,
        "model": experiment.model_name_or_path,
        "training": experiment.training.model_dump(mode="json"),
        "workers": experiment.cluster.num_workers,
    }


def run_fingerprint(experiment: Experiment, prepared: Prepared) -> str:
    """16 hexadecimal digits of `identity`."""
    return fingerprint(identity(experiment, prepared))


def _method(settings: SearcherSettings, num_trials: int) -> Method:
    limit = num_trials if settings.num_trials is None else settings.num_trials
    name = settings.name or settings.type.rpartition(":")[2].lower()
    return Method(name, searcher(settings), limit)


def searcher(settings: SearcherSettings) -> Searcher:
    """Make the searcher that `settings` describe.

    Raises:
        ConfigError: no such type, or fields that it does not have; names both.
    """
    kind = _kind(settings.type)
    fields = {f.name for f in dataclasses.fields(kind)}
    for key in settings.settings:
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ConfigError(
                f"search.searchers: '{settings.type}' has no field '{key}'; known: {known}"
            )
    try:
        made: Searcher = kind(**settings.settings)
    except RaymixError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"search.searchers: '{settings.type}': {error}") from None
    return made


def _kind(name: str) -> Any:
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"search.searchers: cannot import '{name}': {error}") from None
    offered = {kind.lower(): getattr(search, kind) for kind in search.__all__}
    found = offered.get(name.replace("_", "").lower())
    if found is None:
        raise ConfigError(f"search.searchers: no searcher '{name}'; known: {', '.join(offered)}")
    return found
