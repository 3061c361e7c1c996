"""Studies on a toy whose trials follow influences: what reports and trackers are tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raymix.core.codec import decode, encode
from raymix.core.influence import Influence
from raymix.search.ideal import Ideal
from raymix.search.perturb import Perturb
from raymix.strategy.multitask import MultiTask
from raymix.study.objective import Objective
from raymix.study.plan import Confirm, Method, Plan
from raymix.study.serial import run_serial
from raymix.study.study import Study
from raymix.testing.toy import Toy

TOY = Toy(noise=0.005)


@dataclass(frozen=True)
class Checked:
    """The toy, whose influences come with dampings, halves and layers as measured ones do.

    `wrong`: how far the estimate at damping 1 is from that at .01; at 1 it points the other way.
    `sign`: of all estimates against the truth.
    """

    toy: Toy = TOY
    wrong: float = 0.0
    epochs: float = 2.0
    moved: float = 0.1
    notes: tuple[str, ...] = ()
    sign: float = 1.0

    def run(self, jobs, report):
        return [self._checked(result) for result in self.toy.run(jobs, report)]

    def _checked(self, result):
        if "influence" not in result.diagnostics:
            return result
        found = self.influence(decode(Influence, result.diagnostics["influence"]))
        return replace(result, diagnostics={"influence": encode(found)})

    def influence(self, found):
        matrix = np.array(found.estimates["ekfac"])

        def rows(share):
            return tuple(map(tuple, ((1 - 2 * share) * matrix).tolist()))

        signed = {
            name: tuple(map(tuple, (self.sign * np.array(estimate)).tolist()))
            for name, estimate in found.estimates.items()
        }
        return replace(
            found,
            estimates=signed,
            epochs=(self.epochs,) * len(found.domains),
            dampings={"0.01": rows(0.0), "1": rows(self.wrong)},
            halves=(rows(0.0), rows(0.0)),
            layers=("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"),
            # A quarter and three quarters of the whole.
            contributions=(rows(0.375), rows(0.125)),
            rows=(64,) * len(found.domains),
            factor_rows=192,
            moved=self.moved,
            norms=(0.5,) * len(found.domains),
            seconds={"covariances": 1.5, "scores": 0.25},
            passes={"covariances": 2 / 3},
            notes=self.notes,
        )


def follow(folder, runner=None, searcher=None, config=None, listeners=()):
    """A finished study of IDEAL."""
    runner = runner or Checked()
    methods = (Method("ideal", searcher or Ideal(rounds=3), 20),)
    return _finished(folder, runner, methods, config, listeners)


def perturb(folder, runner=None, repeats=2, trials=100, config=None):
    """A finished study that moves each domain."""
    runner = runner or Checked()
    methods = (Method("perturb", Perturb(repeats=repeats), trials),)
    return _finished(folder, runner, methods, config, (), standard=False)


def _finished(folder, runner, methods, config, listeners, standard=True):
    space, confirm = runner.toy.space(), Confirm(0, 0)
    plan = Plan(space, MultiTask(), Objective(), methods, confirm=confirm, standard=standard)
    own = Study(folder, plan, {}, config, listeners=listeners)
    run_serial(own, runner)
    own.close()
    return own
