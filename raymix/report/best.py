"""`best_mixture.yaml`: the mixture that a study found, as `raymix train` and `export` read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raymix.core.codec import decode, encode, from_spec
from raymix.core.errors import ConfigError, MixtureError, nearest
from raymix.core.job import Drawn, Spec, Stage, Strategy
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.core.trial import Trial
from raymix.report.facts import MULTI_TASK, Facts, evidence, label, repeats, used
from raymix.report.verdict import verdict
from raymix.storage.place import Where, os_errors, place, read_whole
from raymix.study.confirm import confirmed
from raymix.study.objective import domain_losses

FILE = "best_mixture.yaml"

_KEYS = (
    "mixture",
    "budget",
    "strategy",
    "params",
    "stages",
    "trial",
    "objective",
    "losses",
    "seeds",
    "realised",
    "verdict",
    "fingerprint",
)


@dataclass(frozen=True)
class Best:
    """A mixture and where it comes from. Only `mixture` is needed to train on it.

    `losses`: means over `seeds` by split and domain, in nats per token. `objective`: what was
    minimised and its mean value on each split. Where methods are compared they are those of the
    best method, over all its runs; the mixture is one run's. `realised`: what its first training
    drew. `strategy`, `params`: in which order it was trained, None: all at once; `stages`: what
    that comes to.
    """

    mixture: Mixture
    budget: Budget | None = None
    trial: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    realised: tuple[Drawn, ...] = ()
    verdict: str = ""
    fingerprint: str = ""
    strategy: Spec | None = None
    params: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


def best_of(known: Facts) -> Best | None:
    """The winner of a study, None while no trial has a score."""
    trial = known.winner
    if trial is None or trial.result is None:
        return None
    trials = evidence(known, trial)
    own = confirmed(known.history, known.confirm).get(trial.number, (trial,))[0]
    # A method's choice may have been confirmed at another size than it was found at.
    resized = _size(own) != _size(trial) and own.result is not None
    shown = own if resized else trial
    metrics = [t.result.metrics for t in trials if t.result is not None]
    scores: dict[str, float] = {}
    losses: dict[str, dict[str, float]] = {}
    for split in ("eval", "test"):
        values = [domain_losses(m, split) for m in metrics]
        names = [n for n in known.domains if all(n in v for v in values)]
        means = {n: sum(v[n] for v in values) / len(values) for n in names}
        score = sum(known.score(m, split, trial.mixture) for m in metrics) / len(metrics)
        if means:
            losses[split] = means
        if math.isfinite(score):
            scores[split] = score
    goal: dict[str, Any] = {"aggregate": known.objective.aggregate, **scores}
    if known.objective.constraints:
        goal["constraints"] = list(known.objective.constraints)
    if known.objective.keep:
        goal["keep"] = dict(known.objective.keep)
    mixture, budget = used(shown), shown.proposal.budget or known.space.budget
    order, params = shown.proposal.strategy or known.strategy, shown.proposal.params
    # A training all at once goes without saying, unless the study's is another.
    told = order.path != MULTI_TASK.path or known.strategy.path != MULTI_TASK.path
    return Best(
        mixture=mixture,
        budget=budget,
        trial=label(trial),
        objective=goal,
        losses=losses,
        seeds=tuple(t.seed for t in trials),
        realised=shown.result.realised if shown.result is not None else (),
        verdict=verdict(repeats(known)).sentence,
        fingerprint=known.fingerprint,
        strategy=order if told else None,
        params=dict(params) if told else {},
        stages=_stages(order, mixture, budget, params) if told else (),
    )


def _stages(
    order: Spec, mixture: Mixture, budget: Budget, params: Mapping[str, float]
) -> tuple[Stage, ...]:
    """What the strategy comes to; none where its class is not at hand (a user's own, elsewhere)."""
    try:
        strategy: Strategy = from_spec(order)
        return strategy.stages(mixture, budget, params)
    except ConfigError:
        return ()


def _size(trial: Trial) -> tuple[Budget | None, tuple[int, ...] | None]:
    return trial.proposal.budget, trial.proposal.pools


def dump_best(best: Best) -> str:
    """The file's text; zero shares are written too, so that every domain is named."""
    plain: dict[str, Any] = {"mixture": best.mixture.as_dict()}
    unit = "shares of the budget"
    if best.budget is not None:
        plain["budget"] = {"amount": best.budget.amount, "unit": best.budget.unit.value}
        unit = f"shares of the budget, in {best.budget.unit.value}"
    plain |= {"stages": [_brief(stage) for stage in best.stages]} if best.stages else {}
    for name in _KEYS:
        value = encode(getattr(best, name))
        if value and name not in plain:
            plain[name] = value
    plain = {name: plain[name] for name in _KEYS if name in plain}
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return f"# Written by raymix. The weights are {unit}, not of rows on disk.\n{body}"


def _brief(stage: Stage) -> dict[str, Any]:
    """A stage without what is as it is by default."""
    usual = encode(Stage(stage.mixture, stage.budget))
    plain = encode(stage)
    return {k: v for k, v in plain.items() if k in ("mixture", "budget") or v != usual[k]}


def write_best(best: Best, path: str | Path) -> Path:
    """Write the file; into a folder under its usual name."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    path.write_text(dump_best(best), encoding="utf-8")
    return path


def read_best(path: Where) -> Best:
    """Read the file (or a folder that has it); a file with nothing but `mixture:` will do.

    Raises ConfigError where the file, a key or a value is wrong.
    """
    path = place(path)
    try:
        with os_errors(path):
            path = path / FILE if path.is_dir() else path
        plain = yaml.safe_load(read_whole(path).decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("mixture"), dict):
        raise ConfigError(f"{path} has no 'mixture:' with a share for each domain")
    for name in plain:
        if name not in _KEYS:
            raise ConfigError(f"{path}: unknown key '{name}'{nearest(str(name), _KEYS)}")
    try:
        return _decoded(plain)
    except (MixtureError, ValidationError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: budget, params, seeds or realised is not as raymix writes it ({error!r}); "
            "only 'mixture:' is needed"
        ) from error


def _decoded(plain: Mapping[str, Any]) -> Best:
    for name, share in plain["mixture"].items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ValueError(f"mixture.{name} must be a number, got {share!r}")
    budget = plain.get("budget")
    return Best(
        mixture=Mixture.of(plain["mixture"]),
        budget=Budget(int(budget["amount"]), Unit(budget["unit"])) if budget else None,
        trial=str(plain.get("trial", "")),
        objective=plain.get("objective", {}),
        losses=plain.get("losses", {}),
        seeds=tuple(int(seed) for seed in plain.get("seeds", ())),
        realised=tuple(decode(Drawn, drawn) for drawn in plain.get("realised", ())),
        strategy=decode(Spec, plain["strategy"]) if plain.get("strategy") else None,
        params={str(name): float(value) for name, value in plain.get("params", {}).items()},
        stages=tuple(decode(Stage, stage) for stage in plain.get("stages", ())),
        verdict=str(plain.get("verdict", "")),
        fingerprint=str(plain.get("fingerprint", "")),
    )
