"""Ask and tell: the study decides what is trained next and remembers what came of it.

Not thread-safe: one driver loop owns a study.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from upath import UPath

from raymix.core.codec import encode, fingerprint
from raymix.core.errors import StudyError
from raymix.core.job import Json, Point, Spent, Status, TrainJob, TrainResult
from raymix.core.trial import History, Idle, Proposal, Role, Trial
from raymix.storage.place import Where
from raymix.study.bill import TOLERANCE, affordable, paid, spent, units
from raymix.study.blind import blind
from raymix.study.confirm import confirmations, saved_at, winner
from raymix.study.foresight import compared, sloped
from raymix.study.job import make_job, space_of
from raymix.study.order import check_orders, ordered, orders, seen_from
from raymix.study.plan import BASE, CONFIRM, Method, Plan, baselines, check_allowed, generator
from raymix.study.record import costs, differences, replay
from raymix.study.store import Store, versions

ATTEMPTS = 3
"""How often a trial may fail without a result (a worker died) before it counts as failed."""

_LAYOUT = 1


class Listener(Protocol):
    """Hears what happens in a study and decides nothing. Trackers and the live table are ones."""

    def trial_started(self, trial: Trial) -> None:
        """A training was launched; again, if it is a further attempt."""
        ...

    def reported(self, trial: Trial, point: Point) -> None:
        """A running training reported `point`, summary metrics included."""
        ...

    def trial_ended(self, trial: Trial) -> None:
        """The trial was told: it has a result, and a score unless it failed."""
        ...


class Study:
    """One search, its history in `<folder>/history.jsonl`.

    Order of asks: open trials again (after a crash, or a failed attempt), the base model, the
    baselines, the methods (fewest asked first), the confirmations. Nothing is asked before the base
    is known. Serially told, the history is a function of the plan and what the trainings return.
    """

    def __init__(
        self,
        folder: Where,
        plan: Plan,
        identity: Mapping[str, Json],
        config: Json = None,
        resume: bool = False,
        listeners: Sequence[Listener] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start a study, or with `resume` take up the one in `folder` if there is one.

        Where nothing was told yet, as no cluster held it for instance, it is started anew.
        `identity` (plain JSON) names what else the results depend on: data, model, training. A
        study is resumed only if it and the plan's seed, objective, space and strategy are equal;
        methods may be added and `num_trials` grown, but each keeps its own strategy. Raises
        StudyError otherwise.
        """
        self.plan = plan
        self._listeners = tuple(listeners)
        self._store = Store(folder, clock)
        try:
            self._record = replay(self._store.events, self._store.path)
            self._open({**identity, **plan.identity()}, config, resume)
            # The record has all that they say; a long study would hold both for as long as it runs.
            self._store.events.clear()
        except BaseException:
            self._store.close()
            raise
        self._blinded: dict[int, TrainResult] = {}
        # What a crash left open is launched again, before anything new.
        self._again = list(self._record.pending)

    def _open(self, identity: Mapping[str, Json], config: Json, resume: bool) -> None:
        path = self._store.path
        body = {
            "fingerprint": fingerprint(identity),
            "identity": identity,
            "config": config,
            "methods": {m.name: m.num_trials for m in self.plan.methods},
            "members": encode(self.plan.members),
            "orders": {**self._others(), **orders(self.plan)},
            "confirm": encode(self.plan.confirm),
            "bill": self.plan.bill,
            "versions": versions(),
        }
        old = self._record.header
        if self._store.events and old.get("layout") != _LAYOUT:
            raise StudyError(f"{path} is no history of a study, or of another version of raymix")
        same = old.get("fingerprint") == body["fingerprint"]
        if not self._record.begun and not (resume and same):
            self._write("study", {"layout": _LAYOUT, **body})
            return
        if not resume:
            raise StudyError(
                f"{path} already holds a study of {len(self._record.trials)} trials; "
                "resume it (--resume), or choose another output_dir"
            )
        if not same:
            changed = "; ".join(differences(old["identity"], encode(identity)))
            raise StudyError(f"{path} cannot be resumed, the experiment has changed: {changed}")
        asked = {trial.method for trial in self._record.trials.values()}
        check_orders(self.plan, old.get("orders", {}), asked)
        self._write("resumed", body)

    def _others(self) -> dict[str, Json]:
        """The strategies of methods that the history knows and this plan does not."""
        if not self._record.begun:
            return {}
        own = {method.name for method in self.plan.methods}
        before: Mapping[str, Json] = self._record.header.get("orders", {})
        return {name: spec for name, spec in before.items() if name not in own}

    # ---- what is known ----

    @property
    def folder(self) -> UPath:
        """The study's folder."""
        return self._store.path.parent

    @property
    def fingerprint(self) -> str:
        """Changes when anything does that results depend on."""
        return str(self._record.header["fingerprint"])

    @property
    def id(self) -> str:
        """Of this history file: the same after a resume, another one for every new study."""
        return fingerprint(self.fingerprint, self._record.header["born"])

    @property
    def history(self) -> History:
        """Everything asked so far, test losses included (searchers do not get those)."""
        return self._record.history

    @property
    def costs(self) -> dict[str, Spent]:
        """What was spent so far, by method."""
        return costs(self.history)

    def units(self, trial: Trial) -> float:
        """What a told trial has cost, in trainings on the study's budget; see `study.bill`."""
        return units(trial, self.plan.space.budget, self.history)

    def best(self) -> Trial | None:
        """The best trial so far; among the confirmed ones once there are any."""
        return winner(self.history, self.plan.confirm, self.plan.members)

    def attempt(self, number: int) -> int:
        """How often the trial was launched before."""
        return self._record.attempts[number]

    # ---- ask ----

    def ask(self) -> Trial | Idle:
        """The next trial to train; WAIT while pending ones must be told first; DONE at the end.

        Written to disk before it is returned.
        """
        if self._again:
            number = self._again[0]
            self._write("asked", {"trial": number, "attempt": self._record.attempts[number] + 1})
            return self._record.trials[self._again.pop(0)]
        if not self._record.trials:
            plain = Proposal(self.plan.space.prior, role=Role.MEASURE)
            return self._ask(BASE, plain, self.plan.seed)
        if self._base() is None:
            return Idle.WAIT
        return self._baseline() or self._search() or self._confirmation() or self._rest()

    def _base(self) -> TrainResult | None:
        return self._record.trials[0].result

    def _ask(self, method: str, proposal: Proposal, seed: int) -> Trial:
        number = len(self._record.trials)
        # A proposal that makes no training must not get into the file, or it would be there again
        # after every resume.
        make_job(self.plan, self._record, Trial(number, method, proposal, seed))
        fields = {"trial": number, "method": method, "seed": seed, "attempt": 0}
        self._write("asked", {**fields, "proposal": encode(proposal)})
        return self._record.trials[number]

    def _baseline(self) -> Trial | None:
        asked = {t.method for t in self.history if t.role is Role.BASELINE}
        for name, proposal in baselines(self.plan).items():
            if name not in asked:
                return self._ask(name, proposal, self.plan.seed)
        return None

    def _search(self) -> Trial | Idle | None:
        """A trial of the method that has asked least and has one to ask; WAIT if any waits."""
        history = self.history
        # What only measures trains nothing, so it does not count towards `num_trials`.
        trained = [t.method for t in history if t.role is not Role.MEASURE]
        counts = {m.name: trained.count(m.name) for m in self.plan.methods}
        waiting = False
        for method in sorted(self.plan.methods, key=lambda m: counts[m.name]):
            if counts[method.name] >= method.num_trials:
                continue
            seen = history.seen_by(method.name)
            if self.plan.bill is not None:
                seen = paid(seen, method.searcher)
            answer = self._propose(method, seen)
            if isinstance(answer, Proposal):
                seed = self.plan.seed + method.repeat + answer.repeat
                return self._ask(method.name, answer, seed)
            if answer is Idle.WAIT:
                if not self._record.pending:
                    raise StudyError(f"method '{method.name}' waits, but no trial is pending")
                waiting = True
        return Idle.WAIT if waiting else None

    def _propose(self, method: Method, seen: History) -> Proposal | Idle:
        """What the method asks for next; DONE, too, where its bill does not allow it.

        What is refused may fit after all once open trials have cost less than was foreseen.
        """
        plan = self.plan
        # Proposing may be dear.
        if plan.bill is not None and sum(spent(seen, plan.space.budget)) >= plan.bill - TOLERANCE:
            return Idle.DONE
        # By its own count: other methods, and how fast they are, do not change what it draws.
        rng = generator(plan.seed, method.name, len(seen.own))
        within = dataclasses.replace(plan.space, params=method.params)
        answer = method.searcher.propose(
            within, blind(seen_from(seen, plan, method), self._blinded), rng
        )
        if isinstance(answer, Idle):
            return answer
        answer = ordered(answer, plan, method)
        space = space_of(plan.space, answer)
        mixture = check_allowed(space, answer.mixture, f"method '{method.name}'")
        if not affordable(answer, seen, plan.space.budget, plan.bill):
            return Idle.DONE
        return dataclasses.replace(answer, mixture=mixture)

    def _confirmation(self) -> Trial | Idle | None:
        """A confirmation; the ranking must be final first."""
        if any(self._record.trials[n].role is not Role.CONFIRM for n in self._record.pending):
            return Idle.WAIT
        for proposal, seed in confirmations(self.history, self.plan):
            return self._ask(CONFIRM, proposal, seed)
        return None

    def _rest(self) -> Idle:
        # A pending trial may yet fail and have to be launched again.
        return Idle.WAIT if self._record.pending else Idle.DONE

    def job(self, trial: Trial) -> TrainJob:
        """The training that `trial` asks for."""
        job = make_job(self.plan, self._record, trial)
        if trial.role is not Role.CONFIRM or not self.plan.confirm.save:
            return job
        return dataclasses.replace(job, save=saved_at(self.folder, self.history, trial))

    # ---- tell ----

    def started(self, number: int) -> None:
        """The trial's training was launched."""
        trial = self._record.open(number)
        self._write("started", {"trial": number, "attempt": self.attempt(number)})
        for listener in self._listeners:
            listener.trial_started(trial)

    def reported(self, number: int, point: Point) -> Point:
        """Record a point of a running training; returns it with the summary metrics added."""
        trial, point = self._record.open(number), self._enrich(point)
        self._write("reported", {"trial": number, "point": encode(point)})
        for listener in self._listeners:
            listener.reported(trial, point)
        return point

    def score(self, number: int, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Score and violation (nats per token) of a trial if it ended with these metrics."""
        mixture = self._record.trials[number].mixture
        return self.plan.objective.score(
            metrics, self._base_metrics(), mixture, self.plan.space.prior
        )

    def tell(self, number: int, result: TrainResult | None, error: str = "") -> Trial:
        """Record the end of a pending trial.

        A result of any status is final; the score of a stopped trial is that of its last point, so
        it ranks before a finished one only if it is already better. No result (a worker died):
        the trial will be asked again, until it has failed `ATTEMPTS` times. Raises StudyError, the
        trial left open, where the base model failed (nothing could be judged without it) or the
        fault lay outside the training (the next ones would meet it, too).
        """
        self._record.open(number)
        if result is None:
            self._write(
                "failed", {"trial": number, "attempt": self.attempt(number), "error": error}
            )
            if self._record.failures[number] < ATTEMPTS:
                self._again.append(number)
                return self._record.trials[number]
            result = TrainResult(Status.FAILED, {}, error=f"{ATTEMPTS} attempts failed: {error}")
        if number == 0 and result.status is Status.FAILED:
            # Left open: who mends the model can go on with this study.
            raise StudyError(f"the base model could not be evaluated: {result.error}")
        if result.outside:
            raise StudyError(
                f"trial {number} was stopped: {result.error}; everything told before is safe, "
                "mend this and resume the study (--resume)"
            )
        result = self._whole(number, result)
        if number == 0:
            score, violation = self.plan.objective.score(
                result.metrics, result.metrics, self.plan.space.prior, self.plan.space.prior
            )
        elif result.status is Status.FAILED:
            score, violation = float("nan"), 0.0
        else:
            score, violation = self.score(number, result.metrics)
        found = {"result": encode(result), "score": score, "violation": violation}
        self._write("told", {"trial": number, **found})
        trial = self._record.trials[number]
        for listener in self._listeners:
            listener.trial_ended(trial)
        return trial

    def _whole(self, number: int, result: TrainResult) -> TrainResult:
        """The result with what only the study knows.

        That is summary metrics, points of earlier attempts, and what became of a forecast.
        """
        first = min((point.step for point in result.curve), default=None)
        earlier = (
            point
            for step, point in sorted(self._record.points[number].items())
            if first is None or step < first
        )
        curve = (*earlier, *(self._enrich(point) for point in result.curve))
        base = result.metrics if number == 0 else self._base_metrics()
        metrics = self.plan.objective.enrich(result.metrics, base)
        if result.status is not Status.FAILED:
            result = sloped(self.plan.objective, result, base)
            proposal = self._record.trials[number].proposal
            metrics |= compared(self.plan.objective, proposal, metrics, base)
        return dataclasses.replace(result, curve=curve, metrics=metrics)

    def _enrich(self, point: Point) -> Point:
        metrics = self.plan.objective.enrich(point.metrics, self._base_metrics())
        return dataclasses.replace(point, metrics=metrics)

    def _base_metrics(self) -> Mapping[str, float]:
        base = self._record.trials[0].result
        return base.metrics if base is not None else {}

    # ---- the file ----

    def _write(self, event: str, fields: Mapping[str, Json]) -> None:
        # Disk first: if it is full, the state in memory is still that of the file.
        self._record.apply(self._store.append(event, fields))

    def close(self) -> None:
        """Free the study for another driver."""
        self._store.close()
