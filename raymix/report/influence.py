"""Whether influence foretold what retraining did: predicted against realised, and doubts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from raymix.core.codec import decode
from raymix.core.forecast import forecast_of
from raymix.core.influence import Influence, Thresholds, consistency, correlation
from raymix.core.job import Diagnostic
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.report.facts import Facts, label
from raymix.report.layout import noted, table_of
from raymix.report.trust import doubts, short
from raymix.search.ideal import MODES
from raymix.study.record import Record


@dataclass(frozen=True)
class Step:
    """A training whose losses an influence had foretold.

    `predicted` and `realised`: change of each domain's eval loss against the parent [K'], and of
    the objective, in nats per token. `number` of the round and `size` of the step, as the method
    notes them; NaN without.
    """

    trial: Trial
    parent: int
    number: float
    size: float
    domains: tuple[str, ...]
    predicted: Vector
    realised: Vector
    objective: tuple[float, float]

    @property
    def right(self) -> bool:
        """Whether the objective went the way that was foretold."""
        return self.objective[0] * self.objective[1] > 0


@dataclass(frozen=True)
class Agreement:
    """How predictions fit what was realised, over `points` pairs.

    `scale`: realised is about so many times the predicted (least squares through 0). NaN: unknown.
    """

    points: int
    spearman: float
    pearson: float
    scale: float
    signs: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.points} points (trial x domain): rank correlation {short(self.spearman)}, "
            f"Pearson {short(self.pearson)}, sign right in {self.signs}; "
            f"realised is about {self.scale:.2g} x predicted"
        )


@dataclass(frozen=True)
class Told:
    """What a method's influences foretold, and the influences themselves, by trial."""

    method: str
    steps: tuple[Step, ...]
    influences: tuple[tuple[Trial, Influence], ...]
    fixed: bool

    @property
    def agreement(self) -> Agreement:
        """Over all steps and domains."""
        empty: Vector = np.zeros(0)
        return agreement(
            np.concatenate([s.predicted for s in self.steps] or [empty]),
            np.concatenate([s.realised for s in self.steps] or [empty]),
        )

    def doubts(self, trust: Thresholds) -> dict[str, str]:
        """Which trials' influences each doubt is about, by the doubt."""
        found: dict[str, list[str]] = {}
        for trial, influence in self.influences:
            for said in doubted_by(self, trial, influence, trust):
                found.setdefault(said, []).append(label(trial))
        every = len(self.influences)
        return {
            said: "all" if 1 < len(who) == every else ", ".join(who) for said, who in found.items()
        }


def agreement(predicted: Vector, found: Vector) -> Agreement:
    """Compare two arrays [N] of changes; pairs with an unknown are left out."""
    from scipy.stats import rankdata

    known = np.isfinite(predicted) & np.isfinite(found)
    x, y = predicted[known], found[known]
    # Two points always lie on a line.
    enough = len(x) > 2
    square = float(x @ x)
    return Agreement(
        points=len(x),
        spearman=correlation(rankdata(x), rankdata(y)) if enough else math.nan,
        pearson=correlation(x, y) if enough else math.nan,
        scale=float(x @ y) / square if square > 0 else math.nan,
        signs=int(np.sum(x * y > 0)),
    )


def told(known: Facts, record: Record) -> tuple[Told, ...]:
    """What each method's influences foretold; nothing of methods without any."""
    found = []
    for method in dict.fromkeys(t.method for t in known.history):
        own = [t for t in known.history if t.method == method]
        steps = tuple(s for t in own if (s := _step(t)) is not None)
        influences = tuple((t, i) for t in own if (i := influence_of(t)) is not None)
        if steps or influences:
            found.append(Told(method, steps, influences, _fixed(record, method)))
    return tuple(found)


def influence_of(trial: Trial) -> Influence | None:
    """The influence that was measured at a trial's end."""
    if trial.result is None or Diagnostic.INFLUENCE not in trial.result.diagnostics:
        return None
    return decode(Influence, trial.result.diagnostics[Diagnostic.INFLUENCE])


def trust_of(record: Record) -> Thresholds:
    """The thresholds in the study's description."""
    config = record.header.get("config") or {}
    return decode(Thresholds, config.get("influence", {}).get("trust", {}))


def influence_tables(known: Facts, record: Record) -> list[RenderableType]:
    """A section for each method that used influence; empty without any."""
    trust, parts = trust_of(record), []
    for each in told(known, record):
        if each.steps:
            parts += _foretold(known, each)
        if each.influences:
            parts += believed(each, trust)
    return parts


def believed(each: Told, trust: Thresholds) -> list[RenderableType]:
    """How each influence agrees with itself, and in words why one is not to be believed."""
    table = table_of(
        f"{each.method}: does the influence agree with itself?",
        ("measured at",),
        ("dampings", "halves", "dot", "epochs", "moved"),
    )
    words = (
        f"correlations of EK-FAC at damping .01 with 1, from half the rows, and with the dot "
        f"product; not to be believed below {short(trust.damping)}, {short(trust.halves)}, "
        f"{short(trust.dot)}, above {trust.epochs:g} epochs of a domain, or where training "
        f"moved weights by more than {trust.moved:.0%} of their norm"
    )
    table.add_column("", no_wrap=True)
    for trial, influence in each.influences:
        found = consistency(influence, trial.mixture.ordered(influence.domains), each.fixed)
        doubted = bool(doubted_by(each, trial, influence, trust))
        mark = Text("doubtful", style="yellow") if doubted else Text("consistent", style="green")
        often, moved = f"{max(influence.epochs):.1f}", f"{influence.moved:.0%}"
        table.add_row(label(trial), *map(short, astuple(found)), often, moved, mark)
    lines = [Text(f"{who}: {said}", style="yellow") for said, who in each.doubts(trust).items()]
    return [noted(table, words), *lines]


def doubted_by(
    each: Told, trial: Trial, influence: Influence, trust: Thresholds
) -> tuple[str, ...]:
    """Sentences that speak against one influence of a method."""
    return doubts(influence, trial.mixture.ordered(influence.domains), trust, each.fixed)


def _foretold(known: Facts, each: Told) -> list[RenderableType]:
    table = table_of(
        f"{each.method}: change of the objective, predicted by influence and realised",
        ("round", "trial", "parent"),
        ("step", "predicted", "realised", "sign"),
    )
    by_number = {t.number: t for t in known.history}
    for step in each.steps:
        predicted, found = step.objective
        table.add_row(
            f"{step.number:.0f}" if math.isfinite(step.number) else "",
            label(step.trial),
            label(by_number[step.parent]),
            f"{step.size:+.3g}" if math.isfinite(step.size) else "",
            f"{predicted:+.4f}",
            f"{found:+.4f}",
            Text("right", style="green") if step.right else Text("wrong", style="red"),
        )
    words = "nats per token, one seed each; negative is better"
    return [noted(table, words), Text(str(each.agreement)), *_verdicts(each)]


def _step(trial: Trial) -> Step | None:
    forecast = forecast_of(trial.proposal)
    if forecast is None or not trial.finished or trial.result is None:
        return None
    note, found = trial.proposal.note, trial.result.metrics
    domains = tuple(forecast.predicted)
    predicted, after = (
        np.array([found.get(f"influence/{name}/{what}", math.nan) for name in domains])
        for what in ("predicted", "realised")
    )
    whole = (found.get(f"influence/{what}", math.nan) for what in ("predicted", "realised"))
    return Step(
        trial=trial,
        parent=forecast.parent,
        number=_noted(trial, "round"),
        size=_noted(trial, "step") * (_noted(trial, "width") if "width" in note else 1.0),
        domains=domains,
        predicted=predicted,
        realised=after,
        objective=(next(whole), next(whole)),
    )


def _noted(trial: Trial, key: str) -> float:
    value = trial.proposal.note.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _verdicts(each: Told) -> list[Text]:
    """What the method held against its rounds; it notes that on the trials of the next one."""
    found = {}
    for step in each.steps:
        verdict = step.trial.proposal.note.get("verdict")
        if isinstance(verdict, Mapping) and verdict.get("reason"):
            found[step.number] = verdict
    return [
        Text(
            f"round {number - 1:.0f}: {verdict['reason']}; "
            f"{'gone on from' if verdict['accepted'] else 'rolled back'}, "
            f"step times {verdict['factor']:g}",
            style="yellow",
        )
        for number, verdict in found.items()
    ]


def _fixed(record: Record, method: str) -> bool:
    """Whether a method keeps the total, as its settings say."""
    config = record.header.get("config") or {}
    for searcher in config.get("search", {}).get("searchers", ()):
        name = searcher.get("name") or str(searcher.get("type", "")).rpartition(":")[2].lower()
        if name == method:
            settings = searcher.get("settings", {})
            rule = MODES.get(str(settings.get("mode", "fixed")))
            return (settings.get("total") or (rule.total if rule else "fixed")) == "fixed"
    return True
