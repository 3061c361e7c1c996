"""Any raymix searcher in a Ray Tune `Tuner` of your own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ray.tune.search import Searcher as RaySearcher

from raymix.core.codec import from_json, to_json
from raymix.core.errors import SearchError
from raymix.core.job import Json, Status, TrainResult
from raymix.core.mixture import Space
from raymix.core.trial import History, Idle, Proposal, Role, Searcher, Trial
from raymix.study.plan import generator

_PLAIN = Proposal.__dataclass_fields__["model"].default


class TuneSearcher(RaySearcher):
    """Suggests configurations `{"weights": {domain: share}}`, with `params` where it has any.

    `metric` is what the trainable reports, "min" or "max" of it is sought. What else it reports
    under raymix's names (`eval/<domain>/loss`) the searcher sees too. Equal seeds and results give
    equal suggestions. A searcher that asks for more than the training of a mixture (a proxy model,
    a start from another trial, a reweighter, a measurement) needs `raymix tune`: SearchError.
    """

    def __init__(
        self,
        searcher: Searcher,
        space: Space,
        metric: str = "eval/mean",
        mode: Literal["min", "max"] = "min",
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._searcher = searcher
        self._space = space
        self._seed = seed
        self._sign = 1.0 if mode == "min" else -1.0
        self._method = type(searcher).__name__.lower()
        self._history = History((), self._method)
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Json] | str | None:
        """A mixture; None while pending trials must end first; FINISHED when there is none left."""
        number = len(self._history)
        rng = generator(self._seed, self._method, number)
        answer = self._searcher.propose(self._space, self._history, rng)
        if answer is Idle.WAIT:
            return None
        if answer is Idle.DONE:
            return RaySearcher.FINISHED
        proposal = _plain(answer, self._method)
        self._numbers[trial_id] = number
        trial = Trial(number, self._method, proposal, self._seed)
        self._history = dataclasses.replace(self._history, trials=(*self._history, trial))
        params = {"params": dict(proposal.params)} if proposal.params else {}
        return {"weights": proposal.mixture.as_dict(), **params}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Json] | None = None, error: bool = False
    ) -> None:
        """Take in the last report of a trial."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        metrics = {
            name: float(value)
            for name, value in (result or {}).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        score = self._sign * metrics.get(str(self.metric), math.nan)
        failed = error or not math.isfinite(score)
        told = TrainResult(Status.FAILED if failed else Status.DONE, metrics)
        trials = list(self._history)
        trials[number] = dataclasses.replace(trials[number], result=told, score=score)
        self._history = dataclasses.replace(self._history, trials=tuple(trials))

    def save(self, checkpoint_path: str) -> None:
        """Write all that was suggested and reported, for `Tuner.restore`."""
        numbers = [f"{trial_id} {number}" for trial_id, number in self._numbers.items()]
        Path(checkpoint_path).write_text("\n".join([to_json(self._history), *numbers]))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a file that `save` wrote."""
        history, *numbers = Path(checkpoint_path).read_text().splitlines()
        self._history = from_json(History, history)
        pairs = (line.rsplit(" ", 1) for line in numbers)
        self._numbers = {trial_id: int(number) for trial_id, number in pairs}


def _plain(proposal: Proposal, method: str) -> Proposal:
    """The proposal, if it asks for nothing but a training on a mixture."""
    more = {
        "model": proposal.model != _PLAIN,
        "start": proposal.start is not None,
        "reference": proposal.reference is not None,
        "keep": proposal.keep,
        "reweighter": proposal.reweighter is not None,
        "measure": bool(proposal.measure),
        "budget": proposal.budget is not None,
        "pools": proposal.pools is not None,
        "role": proposal.role not in (Role.SEARCH, Role.BASELINE),
    }
    asked = [name for name, value in more.items() if value]
    if asked:
        raise SearchError(
            f"'{method}' asks for more than a mixture ({', '.join(asked)}): run it with raymix tune"
        )
    return proposal
