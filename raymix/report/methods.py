"""Whole methods held against each other: what each came to at equal size, and what it spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raymix.core.mixture import Mixture
from raymix.core.trial import Role, Trial
from raymix.report.facts import Facts, Row, label, repeats, rows, used
from raymix.report.layout import noted, rounded, table_of
from raymix.report.verdict import Verdict, verdict
from raymix.study.bill import CHARGED
from raymix.study.groups import runs_of
from raymix.study.objective import domain_losses

FLOOR = 0.02
"""A domain's accuracy says nothing where no method gets beyond this, or below 1 less this."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One method, or a fixed mixture, and its verdict trainings in the order of blocks.

    `units`: what each of its runs spent, empty for a fixed mixture, which has nothing to search.
    `asked`, `tokens`: trainings that its runs asked for, and what passed through the model in them,
    in tokens of training; means over the runs. `remark`: why it did not compete for the best.
    """

    name: str
    trials: tuple[Trial, ...]
    units: tuple[float, ...] = ()
    asked: float = 0.0
    tokens: float = 0.0
    remark: str = ""

    @property
    def mixture(self) -> Mixture:
        """The mean over its verdict trainings of what was trained on."""
        shares = np.mean([used(t).ordered(self._names).array() for t in self.trials], axis=0)
        return Mixture.normalised(self._names, shares)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.trials[0].mixture.names

    def losses(self, split: str) -> Mapping[str, float]:
        """Mean loss of each domain, nats per token."""
        return self._means(lambda t: domain_losses(_metrics(t), split))

    def accuracies(self, split: str) -> Mapping[str, float]:
        """Mean accuracy of each domain; empty where none was measured."""
        return self._means(lambda t: accuracies(_metrics(t), split))

    def _means(self, values: Callable[[Trial], Mapping[str, float]]) -> Mapping[str, float]:
        found = [values(trial) for trial in self.trials]
        names = [name for name in self._names if all(name in values for values in found)]
        return {name: float(np.mean([values[name] for values in found])) for name in names}


def accuracies(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Accuracy by domain: the metrics named `<split>/<domain>/accuracy`."""
    start, end = f"{split}/", "/accuracy"
    return {
        key[len(start) : -len(end)]: value
        for key, value in metrics.items()
        if key.startswith(start) and key.endswith(end)
    }


def arms(known: Facts) -> tuple[Arm, ...]:
    """Every method that was confirmed, best first by the mean eval score of its verdicts."""
    spent, runs = known.bills, runs_of(known.members)
    found = []
    for row in rows(known):
        own = () if row.source.role is Role.BASELINE else runs.get(row.name, ())
        trials = [t for t in known.history if t.method in own]
        trials += [t for trial in trials for t in _charged(known, trial)]
        passed = sum(t.result.spent.tokens + t.result.spent.extra for t in trials if t.result)
        units = tuple(spent[run].spent for run in own)
        count = max(1, len(own))
        amounts = (units, len(trials) / count, passed / count)
        found.append(Arm(row.name, row.trials, *amounts, _remark(row)))
    return tuple(sorted(found, key=lambda arm: float(np.mean([t.score for t in arm.trials]))))


def _remark(row: Row) -> str:
    said = [f"guard broken by {row.broken:.3g}"] if row.broken > 0 else []
    said += [f"{row.failed} failed"] if row.failed else []
    return "; ".join(said)


def _charged(known: Facts, trial: Trial) -> list[Trial]:
    """Baselines that a trial is charged for."""
    note = trial.proposal.note
    numbers = note.get(CHARGED, ()) if isinstance(note, Mapping) else ()
    return [t for t in known.history if t.number in numbers]


def reached(known: Facts, arm: Arm, target: Arm) -> tuple[float, ...]:
    """Part of the budget after which each verdict training was as good as `target`'s at its end.

    By the eval losses, with a straight line between two evaluations; paired by block. Infinite
    where it never was.
    """
    ends = {_block(t): known.score(_metrics(t), "eval", t.mixture) for t in target.trials}
    return tuple(_crossing(known, t, ends[_block(t)]) for t in arm.trials if _block(t) in ends)


def _crossing(known: Facts, trial: Trial, goal: float) -> float:
    curve = trial.result.curve if trial.result else ()
    points = [(p.progress, known.score(p.metrics, "eval", trial.mixture)) for p in curve]
    before: tuple[float, float] | None = None
    for at, score in points:
        if score <= goal:
            if before is None or before[1] <= score:
                return at
            return before[0] + (at - before[0]) * (before[1] - goal) / (before[1] - score)
        before = (at, score) if math.isfinite(score) else before
    return math.inf


def methods_report(known: Facts, optimum: float | None = None) -> Group:
    """Tables and verdict of a study whose methods were confirmed.

    Args:
        known: the study.
        optimum: the objective of the best mixture, where a grid was measured (same split and size).
    """
    found, said = arms(known), verdict(repeats(known))
    split = said.split
    parts = [summary(known, found, said, optimum), by_domain(known, found, split)]
    right = accuracy_table(known, found, split)
    parts += [right] if right is not None else []
    parts += [mixtures(known, found), Text()]
    parts += [Text(f"- {sentence}") for sentence in words(known, found, said)]
    return Group(*parts)


def summary(
    known: Facts, found: Sequence[Arm], said: Verdict, optimum: float | None
) -> RenderableType:
    """One line for each method, best first by eval."""
    seeds = max((len(arm.trials) for arm in found), default=0)
    title = f"Methods, each trained again at equal size ({said.split}, {seeds} fresh seeds)"
    spent = "units" if known.bill is None else f"units of {known.bill:g}"
    columns = ["loss", "worst", "accuracy", *(["gap"] if optimum is not None else [])]
    columns += ["to proportional, 95%", "p", "reaches", "trials", "tokens", spent]
    table = table_of(title, ("method",), columns)
    table.columns[0].max_width = 28
    remarks = any(arm.remark for arm in found)
    if remarks:
        table.add_column("", no_wrap=True)
    against = {c.name: c for c in said.comparisons if c.baseline == _proportional(known)}
    target = next((arm for arm in found if arm.name == _proportional(known)), None)
    for arm in found:
        scores = [known.score(_metrics(t), said.split, t.mixture) for t in arm.trials]
        right = _counting(known, arm.accuracies(said.split))
        c = against.get(arm.name)
        style = {"better": "green", "worse": "red"}.get(c.word if c else "", "")
        table.add_row(
            arm.name,
            _spread(scores),
            rounded(max(_counting(known, arm.losses(said.split)).values(), default=math.nan)),
            f"{np.mean(list(right.values())):.1%}" if right else "–",
            *([rounded(float(np.mean(scores)) - optimum)] if optimum is not None else []),
            f"{c.difference:+.3f} ± {(c.high - c.low) / 2:.3f}" if c else "",
            ("<.001" if c.p < 0.001 else f"{c.p:.3f}") if c else "",
            _reach(reached(known, arm, target)) if target else "–",
            f"{arm.asked:.3g}" if arm.units else "",
            f"{arm.tokens:,.0f}" if arm.units else "",
            f"{np.mean(arm.units):.2f}" if arm.units else "",
            *([arm.remark] if remarks else []),
            style=style,
        )
    return noted(
        table,
        "loss: mean over seeds ± standard deviation, which holds the search's own noise; worst: of "
        "any domain that counts. p: Holm, over all methods and both baselines; the intervals hold "
        "jointly. reaches: part of the budget after which the training was as good as "
        "proportional's at its end (– never). trials, tokens: what one run of the method asked for "
        "and put through the model; units: its bill, one being a training of the study's budget. "
        "References, proxies and influence count; the verdict itself is on nobody's bill.",
    )


def by_domain(known: Facts, found: Sequence[Arm], split: str) -> Table:
    """Loss of every domain by method."""
    table = table_of(f"Losses by domain ({split}, nats per token)", ("method",), known.domains)
    for arm in found:
        losses = arm.losses(split)
        table.add_row(arm.name, *(rounded(losses.get(name, math.nan)) for name in known.domains))
    before = domain_losses(known.base)
    cells = (rounded(before.get(name, math.nan)) for name in known.domains)
    table.add_row("untrained (eval)", *cells, style="dim")
    return table


def accuracy_table(known: Facts, found: Sequence[Arm], split: str) -> RenderableType | None:
    """Accuracy of every domain by method, None where it was not measured."""
    right = {arm.name: arm.accuracies(split) for arm in found}
    names = [name for name in known.domains if any(name in row for row in right.values())]
    if not names:
        return None
    flags = {name: _flag([row[name] for row in right.values() if name in row]) for name in names}
    headers = [f"{name}{'*' if flags[name] else ''}" for name in names]
    table = table_of(f"Exact match by domain ({split})", ("method",), headers)
    for arm in found:
        row = right[arm.name]
        table.add_row(arm.name, *(f"{row[n]:.1%}" if n in row else "–" for n in names))
    told = [f"* {name}: {flag}" for name, flag in flags.items() if flag]
    note = "Share of rows whose whole answer greedy decoding gives, to the last token."
    return noted(table, " ".join([note, *(f"{words}." for words in told)]))


def _flag(values: Sequence[float]) -> str:
    if max(values) <= FLOOR:
        return f"at the floor ({max(values):.1%} at the most), says nothing"
    if min(values) >= 1 - FLOOR:
        return f"at the ceiling ({min(values):.1%} at the least), says nothing"
    return ""


def mixtures(known: Facts, found: Sequence[Arm]) -> Table:
    """What each method came to, a mean over its runs."""
    title = "Mixtures (mean over runs; over steps where they moved in the training)"
    table = table_of(title, ("method",), known.domains)
    for arm in found:
        shares = arm.mixture.as_dict()
        table.add_row(arm.name, *(f"{shares[n]:.2f}".removeprefix("0") for n in known.domains))
    return table


def words(known: Facts, found: Sequence[Arm], said: Verdict) -> list[str]:
    """The verdict, one sentence each: against proportional, cost, and speed."""
    base = _proportional(known)
    by_word: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for c in sorted(said.comparisons, key=lambda c: c.difference):
        if c.baseline == base:
            by_word[c.word].append(f"{c.name} ({c.difference:+.3f})")
    told = [said.sentence]
    phrases = {
        "better": "Better than proportional, beyond noise",
        "not distinguishable": "Not to be told from proportional",
        "worse": "Worse than proportional, beyond noise",
    }
    for word, phrase in phrases.items():
        if by_word[word]:
            told.append(f"{phrase}: {', '.join(by_word[word])}.")
    if known.bill is not None:
        over = [arm.name for arm in found if arm.units and max(arm.units) > 1.005 * known.bill]
        if over:
            told.append(f"A run spent more than was foreseen, beyond its bill: {', '.join(over)}.")
        left = {arm.name: known.bill - float(np.mean(arm.units)) for arm in found if arm.units}
        named = [f"{name} {rest:.2f}" for name, rest in left.items() if rest >= 0.01]
        if named:
            told.append(f"Of {known.bill:g} units each, unspent: {', '.join(named)}.")
    target = next((arm for arm in found if arm.name == base), None)
    if target is not None:
        parts = {arm.name: reached(known, arm, target) for arm in found if arm is not target}
        sure = {n: float(np.mean(p)) for n, p in parts.items() if p and np.isfinite(p).all()}
        if sure and min(sure.values()) < 1:
            first = min(sure, key=sure.__getitem__)
            told.append(
                f"The soonest as good as proportional in the end: {first}, after {sure[first]:.0%} "
                "of the tokens."
            )
    return told


def _proportional(known: Facts) -> str:
    """The name of proportional's row: it may stand for several."""
    for trial in known.history:
        if trial.role is Role.BASELINE and "proportional" in trial.proposal.note["names"]:
            return label(trial)
    return ""


def _counting(known: Facts, values: Mapping[str, float]) -> dict[str, float]:
    """The values of the domains that count in the objective."""
    return {name: value for name, value in values.items() if known.objective.weight(name) > 0}


def _reach(parts: Sequence[float]) -> str:
    whole = [part for part in parts if math.isfinite(part)]
    if not whole:
        return "–"
    mean = f"{np.mean(whole):.2f}".removeprefix("0")
    return mean if len(whole) == len(parts) else f"{mean} ({len(whole)} of {len(parts)})"


def _spread(values: Sequence[float]) -> str:
    if not values or not np.all(np.isfinite(values)):
        return "–"
    mean = f"{float(np.mean(values)):.3f}"
    return f"{mean} ± {float(np.std(values, ddof=1)):.3f}" if len(values) > 1 else mean


def _metrics(trial: Trial) -> Mapping[str, float]:
    return trial.result.metrics if trial.result is not None else {}


def _block(trial: Trial) -> int:
    return int(trial.proposal.note["block"])
