"""A problem with a known optimum that is evaluated in microseconds, without torch.

The losses follow the data mixing law (arXiv:2403.16952): L_i(p) = c_i + k_i exp(-t_i . p), convex
in the mixture p, with noise that two mixtures trained with one seed share in part, as in reality.
What a domain's influence estimates is known here without error: it is a derivative of that formula.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymix.core.codec import encode
from raymix.core.influence import Influence
from raymix.core.job import (
    Diagnostic,
    Drawn,
    Json,
    Point,
    Report,
    Spent,
    Stage,
    Status,
    TrainJob,
    TrainResult,
)
from raymix.core.mixture import Budget, Domain, Mixture, Space
from raymix.core.simplex import Vector


@dataclass(frozen=True)
class Toy:
    """K domains with floors `c` [K], heights `k` [K] and transfer `t` [K, K]; itself a Runner.

    `t[i][j]` says how much training on domain j lowers the loss of domain i. The base model has
    the loss c + k. `noise` is the standard deviation of one domain's loss over seeds, `shared` the
    part of its variance that trainings with equal seeds have in common. `steps` points are
    reported per training, and one at the end of each stage: the order of stages shows in the curve,
    but what comes of them in the end is what their domains come to together. `full`: the budget at
    which p is the mixture's shares; twice the budget then counts as twice the shares. None: only
    shares matter, whatever the budget.
    """

    names: tuple[str, ...] = ("math", "code", "chat")
    c: tuple[float, ...] = (0.4, 0.5, 0.6)
    k: tuple[float, ...] = (2.0, 1.5, 1.0)
    t: tuple[tuple[float, ...], ...] = ((6.0, 1.5, 0.0), (1.5, 4.0, 0.0), (0.0, 0.0, 9.0))
    sizes: tuple[int, ...] = (1000, 3000, 6000)
    noise: float = 0.0
    shared: float = 0.75
    steps: int = 4
    test_shift: float = 0.05
    full: int | None = None

    def space(self, budget: int = 1000, max_epochs: float = float("inf")) -> Space:
        """All mixtures of the domains, prior proportional, no bounds."""
        rows = zip(self.names, self.sizes, strict=True)
        domains = tuple(Domain(name, n, 10 * n, 5 * n) for name, n in rows)
        size = len(self.names)
        prior = Mixture.normalised(self.names, self.sizes)
        caps = (max_epochs,) * size
        return Space(domains, Budget(budget), prior, (0.0,) * size, (1.0,) * size, caps)

    def losses(self, weights: Sequence[float] | Vector, amount: int | None = None) -> Vector:
        """Noise-free losses [K] after `amount` of budget spent on `weights` [K], nats per token.

        `amount` None: `full`.
        """
        return self._after(np.asarray(weights, dtype=np.float64) * self._scale(amount))

    def influence(self, mixture: Mixture, amount: int | None = None) -> Influence:
        """The true influence after a training; "identity" is its hundredfold, "adam" its opposite.

        Derivative of loss i by the logarithm of the count of domain j: -k_i exp(-t_i . p) t_ij p_j.
        """
        weights = mixture.ordered(self.names).array()
        scale = self._scale(amount)
        t, k = np.array(self.t), np.array(self.k)
        exact = -(k * np.exp(-t @ weights * scale))[:, None] * t * scale

        def rows(matrix: Vector) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(row) for row in matrix.tolist())

        counts = weights * (amount or self.full or sum(self.sizes))
        return Influence(
            domains=self.names,
            shares=tuple(weights.tolist()),
            epochs=tuple((counts / np.array(self.sizes)).tolist()),
            estimates={"ekfac": rows(exact), "identity": rows(100 * exact), "adam": rows(-exact)},
        )

    def mean_loss(self, mixture: Mixture) -> float:
        """What the default objective minimises, without noise."""
        return float(self.losses(mixture.ordered(self.names).weights).mean())

    def optimum(self) -> Mixture:
        """The mixture of least mean loss; the problem is convex, so a local solver finds it."""
        from scipy import optimize

        t, k, size = np.array(self.t), np.array(self.k), len(self.names)
        found = optimize.minimize(
            lambda p: (k * np.exp(-t @ p)).mean(),
            np.full(size, 1 / size),
            jac=lambda p: -(k * np.exp(-t @ p)) @ t / size,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * size,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        return Mixture.normalised(self.names, np.maximum(found.x, 0.0))

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        """Train each job (a formula), reporting its points; honours a request to stop."""
        return [self._train(job, report) for job in jobs]

    def _scale(self, amount: int | None) -> float:
        return 1.0 if amount is None or self.full is None else amount / self.full

    def _after(self, exposure: Vector) -> Vector:
        found: Vector = np.array(self.c) + np.array(self.k) * np.exp(-np.array(self.t) @ exposure)
        return found

    def _train(self, job: TrainJob, report: Report) -> TrainResult:
        stages = job.stages or job.trained
        full = np.zeros(len(self.names))
        total = sum(stage.budget.amount for stage in stages)
        for stage in stages:
            full += stage.mixture.ordered(self.names).array() * stage.budget.amount / total
        found = self._diagnostics(job, full, total)
        full *= self._scale(total)
        if not job.stages:
            return TrainResult(Status.DONE, self._metrics(job, full, full, 1.0), diagnostics=found)
        curve = []
        status = Status.DONE
        ends = [sum(s.budget.amount for s in stages[: n + 1]) / total for n in range(len(stages))]
        marks = sorted({*(step / self.steps for step in range(1, self.steps + 1)), *ends})
        for step, progress in enumerate(marks, start=1):
            so_far = self._spent(stages, full, progress)
            metrics = self._metrics(job, full, so_far, progress)
            point = Point(step, progress, metrics, sum(progress > end for end in ends))
            curve.append(point)
            if not report(job.trial, point) and progress < 1.0:
                status = Status.STOPPED
                break
        done = curve[-1]
        rows = int(total * done.progress)
        return TrainResult(
            status,
            done.metrics,
            tuple(curve),
            realised=self._realised(full / full.sum(), rows),
            mean_mixture=Mixture.normalised(self.names, full),
            diagnostics=found,
            checkpoint=f"toy/trial-{job.trial}",
            spent=Spent(done.step, rows, 10 * rows, 5 * rows, seconds=0.001 * rows),
        )

    def _spent(self, stages: Sequence[Stage], full: Vector, progress: float) -> Vector:
        """What of the exposure `full` [K] has been at a share of the budget, stage by stage."""
        if len(stages) == 1 or progress == 1.0:
            return full * progress
        total = sum(stage.budget.amount for stage in stages)
        left, found = progress * total, np.zeros(len(self.names))
        for stage in stages:
            amount = min(left, stage.budget.amount)
            found += stage.mixture.ordered(self.names).array() * amount / total
            left -= amount
        return found * self._scale(total)

    def _diagnostics(self, job: TrainJob, weights: Vector, total: int) -> dict[str, Json]:
        if Diagnostic.INFLUENCE not in job.measure:
            return {}
        mixture = Mixture.normalised(self.names, weights)
        return {Diagnostic.INFLUENCE.value: encode(self.influence(mixture, total))}

    def _realised(self, weights: Vector, rows: int) -> tuple[Drawn, ...]:
        found = []
        for name, share, size in zip(self.names, weights, self.sizes, strict=True):
            n = round(share * rows)
            epochs = n / size
            found.append(Drawn(name, share, share, n, min(n, size), epochs, 10 * n, 5 * n))
        return tuple(found)

    def _metrics(
        self, job: TrainJob, exposure: Vector, done: Vector, progress: float
    ) -> dict[str, float]:
        clean = self._after(done)
        values = clean + (self._noise(job.seed, exposure) if exposure.any() else 0.0)
        found = {f"eval/{n}/loss": float(v) for n, v in zip(self.names, values, strict=True)}
        if job.test and progress == 1.0:
            shifted = zip(self.names, values + self.test_shift, strict=True)
            found |= {f"test/{n}/loss": float(v) for n, v in shifted}
        return found

    def _noise(self, seed: int, exposure: Vector) -> Vector:
        """Noise [K]: a part by seed alone, a part by seed and mixture; pure, so runs repeat."""
        size = len(self.names)
        own = hashlib.sha256(exposure.round(12).tobytes()).digest()[:8]
        common = np.random.default_rng([seed]).normal(size=size)
        single = np.random.default_rng([seed, int.from_bytes(own, "big")]).normal(size=size)
        mixed: Vector = np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * single
        return self.noise * mixed
