"""The report of a study as rich renderables; whoever calls prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raymix.core.influence import PROGRESS
from raymix.core.job import Status
from raymix.core.mixture import in_words
from raymix.core.trial import Role, Trial
from raymix.report.facts import Facts, evidence, facts, label, repeats
from raymix.report.facts import rows as confirmed_rows
from raymix.report.guards import standings
from raymix.report.influence import influence_tables
from raymix.report.layout import rounded, table_of
from raymix.report.leak import leak_tables
from raymix.report.methods import methods_report
from raymix.report.stage_tables import stage_tables
from raymix.report.verdict import Verdict, verdict
from raymix.study.objective import domain_losses
from raymix.study.plan import METHODS
from raymix.study.record import Record, costs

_ROWS = 15
_MOST_COLUMNS = 8
"""Above this many domains only the `_SHOWN` largest shares are written, in one column."""

_SHOWN = 4


def report(record: Record, rows: int = _ROWS) -> Group:
    """Ranking, confirmations, the winner by domain, verdict and costs of a study."""
    known = facts(record)
    said = verdict(repeats(known))
    parts: list[RenderableType] = [headline(known)]
    if known.history.ranking():
        parts.append(ranking(known, rows))
    compares = known.confirm.of == METHODS and bool(said.comparisons)
    if confirmed_rows(known) and not compares:
        parts.append(confirmations(known))
    if said.comparisons:
        parts.append(comparisons(said))
    if known.winner is not None:
        parts.append(winner_by_domain(known, known.winner))
        parts += [guard_table(known, known.winner)] if known.objective.guards else []
    parts += stage_tables(known)
    parts += influence_tables(known, record)
    parts += leak_tables(known, record)
    parts.append(spending(known))
    last = methods_report(known) if compares else Text(said.sentence, style="bold")
    parts.append(last)
    return Group(*parts)


def status_table(record: Record) -> Group:
    """How far a study is: trials by method, what is open, what is best so far."""
    known = facts(record)
    planned: Mapping[str, int] = record.header.get("methods", {})
    table = table_of("Trials", ("method",), ("asked", "planned", "told", "failed"))
    for method in dict.fromkeys([*(t.method for t in known.history), *planned]):
        own = [t for t in known.history if t.method == method]
        told = sum(not t.pending for t in own)
        failed = told - sum(t.finished for t in own)
        limit = str(planned.get(method, ""))
        table.add_row(method, str(len(own)), limit, str(told), str(failed or ""))
    parts: list[RenderableType] = [headline(known), table]
    for number in record.pending:
        points = record.points[number]
        last = points[max(points)] if points else None
        text = f"open: {label(record.trials[number])}, attempt {record.attempts[number] + 1}"
        if last is not None:
            mean = rounded(last.metrics.get("eval/mean", math.nan))
            text += f", step {last.step}, {last.progress:.0%} of its budget, eval mean {mean}"
            if PROGRESS in last.metrics:
                text += f", influence measured to {last.metrics[PROGRESS]:.0%}"
        parts.append(Text(text))
    best = known.winner
    if best is not None:
        parts.append(
            Text(
                f"best so far: {label(best)}, score {rounded(best.score)}: {best.mixture}"
                f"{_params([best])}"
            )
        )
    return Group(*parts)


def headline(known: Facts) -> Text:
    """How many trials, how they ended, and what was minimised."""
    told = len(known.history) - known.pending
    text = f"{told} trials told"
    text += f", {known.failures} failed" if known.failures else ""
    text += f", {known.pending} open" if known.pending else ""
    goal = known.objective
    text += f"; objective: {goal.aggregate} eval loss (nats per token, lower is better)"
    text += f" + {goal.kl_to_prior:g} KL to prior" if goal.kl_to_prior else ""
    text += f" + {goal.keep_penalty:g} for each nat beyond a margin" if goal.keep else ""
    text += "".join(f"; {guard}" for guard in goal.guards)
    return Text(text + f"; data and settings {known.fingerprint}")


def ranking(known: Facts, rows: int = _ROWS) -> Table:
    """The best trials of the search, one seed each, and the model before training."""
    title = "Ranking of the search (one seed, eval)"
    goal = known.objective
    plain = goal.aggregate == "mean" and not (goal.kl_to_prior or goal.keep)
    score = () if plain else ("score",)
    left = ("#", "trial", _share_header(known))
    table = table_of(title, left, (*score, "mean", "worst", "imbal", "regr"))
    table.add_column("", no_wrap=True)
    ranked = known.history.ranking()
    best = known.winner
    for place, trial in enumerate(ranked, start=1):
        if place > rows and trial.role is not Role.BASELINE and trial != best:
            continue
        style = "bold green" if best is not None and trial.number == best.number else ""
        table.add_row(
            str(place),
            label(trial),
            _shares(known, trial),
            *(() if plain else (rounded(trial.score),)),
            *_summary(trial),
            _remark(trial),
            style=style,
        )
    if len(ranked) > rows:
        table.caption = f"best {rows} of {len(ranked)}, and the baselines"
    if known.base:
        blank = [""] * (2 - plain)
        base = known.base
        mean, worst = (rounded(base.get(f"eval/{n}", math.nan)) for n in ("mean", "worst"))
        table.add_row("", "untrained model", *blank, mean, worst, "", "", "", style="dim")
    return table


def confirmations(known: Facts) -> Table:
    """What was confirmed with fresh seeds, eval and test: mean and standard deviation."""
    found = confirmed_rows(known)
    most = max(len(row.trials) for row in found)
    methods = known.confirm.of == METHODS
    title = f"Confirmed with {most} fresh seeds (mean ± standard deviation over seeds"
    title += "; a method's each of another run of it)" if methods else ")"
    left = ("method" if methods else "trial", _share_header(known))
    table = table_of(title, left, ("n", "eval", "test", "worst"))
    order = sorted(found, key=lambda r: (-len(r.trials), np.mean([t.score for t in r.trials])))
    for row in order:
        splits = [
            [known.score(t.result.metrics, split, t.mixture) for t in row.trials if t.result]
            for split in ("eval", "test")
        ]
        worst = [t.result.metrics.get("eval/worst", math.nan) for t in row.trials if t.result]
        table.add_row(
            row.name,
            _shares(known, *row.trials),
            str(len(row.trials)),
            *(_spread(values) for values in splits),
            rounded(float(np.mean(worst))),
            style="bold green" if row.best else "",
        )
    return table


def comparisons(said: Verdict) -> Table:
    """Every confirmed mixture against proportional and uniform."""
    table = table_of(
        f"Against the baselines ({said.split} losses; shared seeds as blocks)",
        ("trial", "against"),
        ("difference, 95%", "p"),
        f"noise of one training {said.noise:.3g} ({said.freedom} degrees of freedom); least "
        f"detectable difference {said.detectable:.3g}. p: Holm. The intervals hold jointly "
        "(Bonferroni), so one may reach 0 where Holm's sharper test still sees a difference.",
    )
    table.add_column("verdict", no_wrap=True)
    styles = {"better": "green", "worse": "red", "not distinguishable": "dim"}
    for c in said.comparisons:
        table.add_row(
            c.name,
            c.baseline,
            f"{c.difference:+.4f} ± {(c.high - c.low) / 2:.4f}",
            "<.001" if c.p < 0.001 else f"{c.p:.3f}",
            Text(c.word, style=styles[c.word]),
        )
    return table


def winner_by_domain(known: Facts, best: Trial) -> Table:
    """The winner's shares, what was drawn, and each domain's loss against the untrained model.

    Where methods are compared the losses are means over all runs of the winner's.
    """
    trials = evidence(known, best)
    metrics = [t.result.metrics for t in trials if t.result is not None]
    means = {
        split: {
            name: float(np.mean([domain_losses(m, split).get(name, math.nan) for m in metrics]))
            for name in known.domains
        }
        for split in ("eval", "test")
    }
    drawn = {d.domain: d for d in best.result.realised} if best.result is not None else {}
    table = table_of(
        f"{label(best)} by domain (losses: mean of {len(metrics)})",
        ("domain",),
        ("share", "realised", "rows", "epochs", "base eval", "eval", "change", "test"),
    )
    before = domain_losses(known.base)
    for name, share in best.mixture.as_dict().items():
        row, base, now = drawn.get(name), before.get(name, math.nan), means["eval"][name]
        table.add_row(
            name,
            f"{share:.3f}",
            f"{row.share:.3f}" if row else "",
            f"{row.rows:,}" if row else "",
            f"{row.epochs:.2f}" if row else "",
            rounded(base),
            rounded(now),
            f"{now / base - 1:+.1%}" if base > 0 and math.isfinite(now) else "",
            rounded(means["test"][name]),
        )
    return table


def guard_table(known: Facts, best: Trial) -> Table:
    """Whether each guard holds, of the winner or of all that was confirmed."""
    table = table_of(
        "Guards: how far below its bound each metric ended (eval; nats per token)",
        ("trial", "guard"),
        ("eval", "over seeds", "test"),
        "mean over the trainings that count; test has the bound of the base model's test loss",
    )
    rows = [(row.name, row.trials, row.best) for row in confirmed_rows(known)]
    for name, trials, first in rows or [(label(best), (best,), True)]:
        for each in standings(known.objective, known.base, trials):
            table.add_row(
                name,
                each.name,
                each.words,
                each.seeds,
                each.test_words,
                style="" if each.holds and not first else "bold green" if each.holds else "red",
            )
    return table


def spending(known: Facts) -> Table:
    """What each method has spent, unranked trainings and confirmations included."""
    limited = known.bill is not None
    right: tuple[str, ...] = ("trials", "steps", "rows", "tokens", "seconds", "GPU hours", "units")
    words = ""
    if limited:
        right = (*right, "unspent")
        words = f"units: trainings on the study's budget; each method may spend {known.bill:g}"
    table = table_of("Cost", ("method",), right, words)
    paid = known.bills
    for method, spent in costs(known.history).items():
        bill = paid.get(method)
        table.add_row(
            method,
            str(sum(t.method == method for t in known.history)),
            f"{spent.steps:,}",
            f"{spent.rows:,}",
            f"{spent.tokens:,}",
            f"{spent.seconds:,.1f}",
            f"{spent.gpu_seconds / 3600:.2f}",
            "" if bill is None else f"{bill.spent:.2f}",
            *([] if not limited else ["" if bill is None else f"{bill.unspent:.2f}"]),
        )
    return table


def _abbreviations(names: Sequence[str]) -> list[str]:
    """The names cut to four letters, or to as many as keep them apart."""
    for width in range(4, max(map(len, names), default=4) + 1):
        cut = [name[:width] for name in names]
        if len(set(cut)) == len(cut):
            return cut
    return list(names)


def _share_header(known: Facts) -> str:
    if len(known.domains) > _MOST_COLUMNS:
        return "mixture"
    return " ".join(f"{name:>3}" for name in _abbreviations(known.domains))


def _shares(known: Facts, *trials: Trial) -> Text:
    """The shares of a trial, the mean of several."""
    means = np.mean([t.mixture.ordered(known.domains).array() for t in trials], axis=0)
    shares = dict(zip(known.domains, means.tolist(), strict=True))
    if len(shares) > _MOST_COLUMNS:
        largest = sorted(shares.items(), key=lambda item: -item[1])
        shown = " ".join(f"{name} {share:.2f}" for name, share in largest[:_SHOWN])
        rest = f"{shown} and {len(largest) - _SHOWN} more{_params(trials)}"
        return Text(rest, style="cyan")
    widths = [max(3, len(name)) for name in _abbreviations(known.domains)]
    cells = (f"{share:.2f}".removeprefix("0") for share in shares.values())
    line = " ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
    return Text(line + _params(trials), style="cyan")


def _params(trials: Sequence[Trial]) -> str:
    """What was set of the strategy, means over the trials; after the shares."""
    told = [trial.proposal.params for trial in trials]
    names = dict.fromkeys(name for params in told for name in params)
    means = {n: float(np.mean([params[n] for params in told if n in params])) for n in names}
    return f" {in_words(means)}" if means else ""


def _summary(trial: Trial) -> list[str]:
    metrics = trial.result.metrics if trial.result is not None else {}
    values = [metrics.get(f"eval/{n}", math.nan) for n in ("mean", "worst", "imbalance")]
    regressed = metrics.get("eval/regressed", math.nan)
    return [*(rounded(value) for value in values), rounded(regressed, 0)]


def _remark(trial: Trial) -> str:
    said = []
    if trial.violation > 0:
        said.append(f"guard broken by {trial.violation:.3g}")
    result = trial.result
    if result is not None and result.status is Status.STOPPED:
        part = f" at {result.curve[-1].progress:.0%}" if result.curve else ""
        said.append(f"stopped{part}")
    if trial.role is Role.BASELINE and trial.proposal.note["projected"]:
        said.append("nearest that bounds and caps allow")
    return "; ".join(said)


def _spread(values: Sequence[float]) -> str:
    if not values or not np.all(np.isfinite(values)):
        return "–"
    mean = rounded(float(np.mean(values)))
    return f"{mean} ±{float(np.std(values, ddof=1)):.3f}" if len(values) > 1 else mean
