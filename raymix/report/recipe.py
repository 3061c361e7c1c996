"""What an export has to say: rows per domain, and where the rows lie.

Other trainers count rows, whatever unit the budget was in. A share that needs repetition becomes
whole copies of a domain plus a remainder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymix.core.errors import ConfigError
from raymix.core.job import Json, Prompt, Trainable
from raymix.core.mixture import Domain, Unit
from raymix.core.simplex import largest_remainder
from raymix.data.locate import Disk, Hub, Plan
from raymix.report.best import Best


@dataclass(frozen=True)
class Portion:
    """How much of a domain is trained on: `copies` times its `pool` rows, and `rest` rows more."""

    domain: str
    plan: Plan
    pool: int
    rows: int

    @property
    def copies(self) -> int:
        """Whole passes."""
        return self.rows // self.pool

    @property
    def rest(self) -> int:
        """Rows of one more, partial pass."""
        return self.rows % self.pool

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each pass."""
        return (self.pool,) * self.copies + ((self.rest,) if self.rest else ())

    @property
    def files(self) -> tuple[str, ...]:
        """Data files; empty for the hub."""
        train = self.plan.train
        return () if isinstance(train, Hub) else tuple(str(path) for path in train.paths)

    @property
    def builder(self) -> str:
        """What `datasets.load_dataset` calls the kind of the files."""
        suffix = self.files[0].rpartition(".")[2] if self.files else ""
        return {"jsonl": "json"}.get(suffix, suffix)


@dataclass(frozen=True)
class Recipe:
    """The mixture `best` over `domains`, whose rows lie where `plans` say.

    `training`: the experiment's `training:` block. `seed`: the study's.
    """

    best: Best
    domains: Sequence[Domain]
    plans: Sequence[Plan]
    model: str
    training: Mapping[str, Json]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a mixture of other domains, and one without a budget."""
        names = tuple(domain.name for domain in self.domains)
        self.best.mixture.ordered(names)
        if {plan.domain for plan in self.plans} != set(names):
            raise ConfigError(f"datasets and prepared domains differ: {', '.join(names)}")
        if self.best.budget is None:
            raise ConfigError("the mixture's file has no budget: nothing says how many rows")

    def portions(self) -> tuple[Portion, ...]:
        """Rows per domain, those without a share left out.

        What was realised when the mixture was trained; else the share over the mean row's size.
        """
        plans = {plan.domain: plan for plan in self.plans}
        drawn = {d.domain: d.rows for d in self.best.realised}
        rows = drawn if drawn else self._expected()
        return tuple(
            Portion(d.name, plans[d.name], d.rows, rows[d.name])
            for d in self.domains
            if rows.get(d.name, 0) > 0
        )

    def _expected(self) -> dict[str, int]:
        budget = self.best.budget
        assert budget is not None
        shares = self.best.mixture.as_dict()
        names = [domain.name for domain in self.domains]
        if budget.unit is Unit.EXAMPLES:
            counts = largest_remainder([shares.get(n, 0.0) for n in names], budget.amount)
            return {name: int(count) for name, count in zip(names, counts, strict=True)}
        return {
            d.name: round(shares.get(d.name, 0.0) * budget.amount * d.rows / d.size(budget.unit))
            for d in self.domains
        }

    def header(self, notes: Sequence[str]) -> str:
        """Comment lines: what the mixture is, and what was needed to keep its meaning."""
        budget = self.best.budget
        assert budget is not None
        origin = f" ({self.best.trial})" if self.best.trial else ""
        lines = [
            f"Mixture found by raymix{origin}, study {self.best.fingerprint or 'unknown'}.",
            f"Shares are of a budget of {budget.amount} {budget.unit.value}:",
        ]
        portions = self.portions()
        total = sum(p.rows for p in portions)
        for p in portions:
            share = self.best.mixture.as_dict().get(p.domain, 0.0)
            lines.append(
                f"  {p.domain}: share {share:.4f}, {p.rows} of {total} rows, "
                f"{p.rows / p.pool:.2f} epochs of {p.pool}"
            )
        lines += self._order()
        left_out = [d.name for d in self.domains if d.name not in {p.domain for p in portions}]
        if left_out:
            lines.append(f"  without a share, left out: {', '.join(left_out)}")
        lines.append("What it took to keep that meaning here:")
        lines += [f"- {note}" for note in (*notes, *self._warnings(portions))]
        return "".join(f"# {line}\n" for line in lines)

    def _order(self) -> list[str]:
        """The stages that the mixture was trained in, and that they are lost here."""
        stages, order = self.best.stages, self.best.strategy
        if order is None or (len(stages) == 1 and stages[0].prompt is Prompt.OFF):
            return []
        numbers = "".join(f", {name} {value:g}" for name, value in self.best.params.items())
        name = order.path.rpartition(":")[2]
        if len(stages) == 1:
            return [
                f"WARNING: found with the strategy {name}{numbers}, which trains a soft prompt.",
                "  What is written here trains the weights on the mixture, without one.",
            ]
        lines = [
            f"WARNING: found with the strategy {name}{numbers}, which",
            "  trains in stages. What is written here mixes all domains at once: the order is",
            "  lost, and with it what the strategy was chosen for."
            + (" The stages were:" if stages else ""),
        ]
        for number, stage in enumerate(stages, start=1):
            shares = zip(stage.mixture.names, stage.mixture.weights, strict=True)
            parts = " ".join(
                f"{name} {round(share * stage.budget.amount)}" for name, share in shares if share
            )
            again = f" ({', '.join(stage.replay)}: the first rows again)" if stage.replay else ""
            prompt = "" if stage.prompt is Prompt.OFF else f", prompt: {stage.prompt}"
            trained = "" if stage.trainable is Trainable.WEIGHTS else f", {stage.trainable}"
            lines.append(f"    {number}. {parts} {stage.budget.unit}{again}{prompt}{trained}")
        return lines

    def _warnings(self, portions: Sequence[Portion]) -> list[str]:
        """What no trainer's configuration can express."""
        found = []
        budget = self.best.budget
        if budget is not None and budget.unit is not Unit.EXAMPLES:
            found.append(
                f"the budget counts {budget.unit.value}; the rows written here hold them on "
                "average, as rows are drawn at random"
            )
        for p in portions:
            carved = [
                f"{split} ({value:g})"
                for split, value in (("eval", p.plan.eval), ("test", p.plan.test))
                if isinstance(value, int | float)
            ]
            if carved:
                found.append(
                    f"WARNING: raymix took the rows of {' and '.join(carved)} out of '{p.domain}'; "
                    "nothing here does, so do not evaluate on them"
                )
            if isinstance(p.plan.train, Disk):
                found.append(
                    f"WARNING: '{p.domain}' was made by save_to_disk; its Arrow files are named"
                )
        return found
