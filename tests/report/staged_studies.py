"""Studies whose trainings have stages, with losses written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raymix.core.codec import to_spec
from raymix.core.job import Point, Prompt, Spent, Stage, Status, Trainable, TrainJob, TrainResult
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.core.trial import History, Proposal, Role, Trial
from raymix.report.facts import Facts
from raymix.study.groups import Member
from raymix.study.objective import Objective
from raymix.study.plan import METHODS, Confirm

NAMES = ("math", "code", "chat")
BASE = (3.0, 2.0, 1.0)

# Losses at the end of each stage, by the number of stages and hand.
ONE = ((1.5, 1.4, 0.8),)
TWO = ((1.0, 1.2, 1.5), (1.3, 1.25, 0.7))
THREE = ((0.9, 2.1, 1.2), (1.6, 1.1, 1.4), (1.8, 1.7, 0.6))


def space() -> Space:
    domains = tuple(Domain(name, 1000, 10_000, 5_000) for name in NAMES)
    prior = Mixture(NAMES, (0.5, 0.25, 0.25))
    return Space(domains, Budget(100), prior, (0.0,) * 3, (1.0,) * 3, (float("inf"),) * 3)


def part(mixture: Mixture, names: Sequence[str]) -> Mixture:
    shares = mixture.as_dict()
    return Mixture.normalised(mixture.names, [x if n in names else 0.0 for n, x in shares.items()])


@dataclass(frozen=True)
class Ordered:
    """A stage for each entry of `order`, of equal budgets."""

    order: tuple[tuple[str, ...], ...] = (("math", "code"), ("chat",))
    replay: float = 0.0

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        amount = Budget(budget.amount // len(self.order), budget.unit)
        return tuple(Stage(part(mixture, names), amount, restart=True) for names in self.order)


@dataclass(frozen=True)
class Together:
    """One stage."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        return (Stage(mixture, budget),)


@dataclass(frozen=True)
class Carried:
    """A prompt on `target`, alone and then with the model."""

    target: str = "math"

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        half = Budget(budget.amount // 2, budget.unit)
        own = (self.target,)
        return (
            Stage(part(mixture, own), half, None, Trainable.NONE, Prompt.TRAIN, carriers=own),
            Stage(mixture, half, prompt=Prompt.FROZEN, replay=own, restart=True, carriers=own),
        )


def metrics(losses: Sequence[float], shift: float = 0.0) -> dict[str, float]:
    return {f"eval/{n}/loss": x + shift for n, x in zip(NAMES, losses, strict=True)}


@dataclass(frozen=True)
class ByHand:
    """A runner whose trainings of S stages have the losses written for S, higher by the seed.

    Each stage reports in its middle, where all is worse by 1, and at its end. Confirmations of seed
    1000 + b are higher by b / 10 at every end.
    """

    def run(self, jobs, report):
        return [self._train(job, report) for job in jobs]

    def _train(self, job: TrainJob, report) -> TrainResult:
        if not job.stages:
            return TrainResult(Status.DONE, metrics(BASE))
        table = {1: ONE, 2: TWO, 3: THREE}[len(job.stages)]
        shift = (job.seed - 1000) / 10 if job.seed >= 1000 else 0.0
        curve: list[Point] = []
        for number, losses in enumerate(table):
            for half in (0, 1):
                step = 2 * number + half + 1
                values = metrics(losses, shift + 1 - half)
                curve.append(Point(step, step / (2 * len(table)), values, number))
                report(job.trial, curve[-1])
        test = {k.replace("eval", "test"): v for k, v in curve[-1].metrics.items()}
        last = {**curve[-1].metrics, **(test if job.test else {})}
        return TrainResult(
            Status.DONE, last, tuple(curve), spent=Spent(curve[-1].step, 100, 1000, 500)
        )


def trained(
    number: int,
    table: Sequence[Sequence[float]],
    strategy: object | None,
    proposal: Proposal | None = None,
    more: Sequence[Mapping[str, float]] | None = None,
    status: Status = Status.DONE,
) -> Trial:
    """A told trial whose stages ended with the losses of `table`, and the metrics `more`."""
    curve = tuple(
        Point(
            10 * (i + 1),
            (i + 1) / len(table),
            {**metrics(losses), **(more[i] if more else {})},
            i,
        )
        for i, losses in enumerate(table)
    )
    asked = replace(
        proposal or Proposal(space().prior),
        strategy=None if strategy is None else to_spec(strategy),
    )
    result = TrainResult(status, curve[-1].metrics, curve)
    return Trial(number, "search", asked, 0, result, sum(table[-1]) / 3)


def facts_of(trials: Sequence[Trial], **fields: object) -> Facts:
    """What is known of a study of `trials`, after one of the model before training."""
    base = TrainResult(Status.DONE, metrics(BASE))
    first = Trial(0, "base", Proposal(space().prior, role=Role.MEASURE), 0, base, 2.0)
    history = History((first, *trials), "", base)
    groups = {name: Member(name) for name in dict.fromkeys(t.method for t in trials)}
    settings = {"members": groups, "confirm": Confirm(0, 0), "bill": None, **fields}
    return Facts(history, Objective(), space(), "f00d", 0, 0, **settings)


def compared() -> Facts:
    """Three methods of one, two and three stages; the last two were confirmed three times.

    Confirmation b of the two stages is higher by b / 10 in all losses, of the three by b / 5.
    """
    settings = {
        "multitask": (ONE, Together()),
        "twice": (TWO, Ordered()),
        "thrice": (THREE, Ordered((("math",), ("code",), ("chat",)))),
    }
    searched = [
        replace(trained(number, table, strategy), method=name)
        for number, (name, (table, strategy)) in enumerate(settings.items(), start=1)
    ]
    again = []
    for number, (name, (table, strategy)) in enumerate(settings.items(), start=1):
        for block in range(3):
            raised = [[loss + block * (len(table) - 1) / 10 for loss in row] for row in table]
            note = {"of": number, "block": block, "group": name}
            asked = Proposal(space().prior, role=Role.CONFIRM, note=note)
            trial = trained(4 + len(again), raised, strategy, asked)
            again.append(replace(trial, method="confirm", seed=1000 + block))
    members = {name: Member(name) for name in settings}
    return facts_of([*searched, *again], members=members, confirm=Confirm(0, 3, METHODS))
