"""A study on two nodes of which one is lost in mid-trial, held against one that was left alone.

A real cluster of several Ray nodes on this machine: a head that trains nothing, and two nodes. The
same study of the embedded suite runs on it twice. The second time a node goes after a third of the
trainings, with all that runs on it, and a new one comes after two thirds. Then both histories are
compared, training by training, to the last bit, wherever they must be the same. Fails where they
are not, and where anything is left behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from quickstart import describe
from rich.console import Console, Group
from rich.table import Table
from two_histories import Pair, Struck, asked, pairs, struck

from raymix.cli import told
from raymix.cluster.config import Cluster
from raymix.cluster.rehearsal import held, join, lose, pools, rehearsal
from raymix.core.errors import ConfigError
from raymix.core.job import Point
from raymix.core.trial import Trial
from raymix.data.prepare import Prepared
from raymix.experiment.build import plan, prepare, space
from raymix.experiment.config import ConfirmSettings, Experiment, TrackingSettings
from raymix.experiment.run import tune
from raymix.report.facts import label
from raymix.report.layout import noted, rounded, table_of
from raymix.report.table import report
from raymix.study.plan import trainings
from raymix.study.record import read
from raymix.study.store import FILE, read_events
from raymix.testing.suite import RECIPE
from raymix.track.live import LiveTable

NODES = 2
REPORTS = 15
"""How often a training is evaluated and reports."""
SAVES = 5
"""Reports from one checkpoint to the next."""
BLIND = ("dirichlet",)
"""Methods whose proposals do not depend on what the others have come to."""
PATIENCE = 90.0
"""Seconds that what is ending may take to end."""

console = Console(width=140, highlight=False)


def study(base: Experiment, folder: Path, steps: int, seeds: int, at_once: int) -> Experiment:
    """The study in `folder`: short trainings that save checkpoints, a small confirmation."""
    each = steps // REPORTS
    training = base.training.model_copy(
        update={"eval_steps": each, "save_steps": SAVES * each, "eval_rows": 128}
    )
    return base.model_copy(
        update={
            "study": base.study.model_copy(update={"name": "node_lost", "output_dir": str(folder)}),
            "mixture": base.mixture.model_copy(update={"budget": steps * RECIPE.batch_size}),
            "training": training,
            "search": base.search.model_copy(
                update={"confirm": ConfirmSettings(top_k=1, seeds=seeds)}
            ),
            "cluster": Cluster(pools=at_once),
            "tracking": TrackingSettings(report_to="none"),
        }
    )


class Fate:
    """A listener that loses a node after a third of the trainings; another joins after two.

    It waits for a moment at which every training that runs has reported since its last checkpoint,
    and is far from the next: then what is lost shows in the history. It does not wait for ever.
    """

    def __init__(
        self,
        planned: int,
        at_once: int,
        steps: int,
        lose: Callable[[], None],
        join: Callable[[], None],
    ) -> None:
        self.planned, self.at_once, self.each = planned, at_once, steps // REPORTS
        self.lose, self.join = lose, join
        self.last: dict[int, int] = {}
        self.told = 0
        self.lost = self.joined = False

    def trial_started(self, trial: Trial) -> None:
        """One more runs."""
        self.last[trial.number] = 0

    def reported(self, trial: Trial, point: Point) -> None:
        """The time may have come; in the main thread, where nodes are started."""
        self.last[trial.number] = point.step
        if not self.lost and 3 * self.told >= self.planned and self._now():
            self.lost = True
            self.lose()
        elif self.lost and not self.joined and 3 * self.told >= 2 * self.planned:
            self.joined = True
            self.join()

    def _now(self) -> bool:
        since = [step // self.each % SAVES for step in self.last.values()]
        good = len(since) >= self.at_once and all(1 <= reports <= SAVES - 2 for reports in since)
        return good or 2 * self.told > self.planned

    def trial_ended(self, trial: Trial) -> None:
        """One less runs."""
        self.last.pop(trial.number, None)
        self.told += 1


class Watch:
    """Looks every half second at how many pools have a place, and at this script's processes.

    `changes`: seconds since `begin`, and how many pools there are from then on.
    """

    def __init__(self) -> None:
        self.processes: set[psutil.Process] = set()
        self.lost: set[str] = set()
        self.changes: list[tuple[float, int]] = []
        self._begun = time.monotonic()
        self._over = threading.Event()

    def begin(self) -> None:
        """Count time and pools anew."""
        self._begun, self.changes = time.monotonic(), [(0.0, 0)]

    @property
    def seconds(self) -> float:
        """Since `begin`."""
        return time.monotonic() - self._begun

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In a thread of its own."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.5):
            self.processes.update(me.children(recursive=True))
            placed = sum(not nodes & self.lost for nodes in pools().values())
            if self.changes and placed != self.changes[-1][1]:
                self.changes.append((self.seconds, placed))

    def left(self) -> list[str]:
        """Command lines of those processes that still run."""
        found = []
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline())[:100])
        return found


# ---- what is shown ----


def pools_table(watched: dict[str, list[tuple[float, int]]]) -> Group:
    """How many pools had their place, from when on, in each study."""
    table = table_of("Pools that have their place, from second to second", ("study",), ())
    table.add_column("second: pools")
    for name, changes in watched.items():
        table.add_row(name, ", ".join(f"{seconds:.0f}: {count}" for seconds, count in changes))
    words = "A pool that is ended, as its node has gone, may take a new node's place for a moment."
    return noted(table, words)


def struck_table(found: Sequence[Struck], steps: int, compared: Sequence[Pair]) -> Table:
    """Which trainings the node took with it, and what that cost them."""
    each = steps // REPORTS
    left = ("training",)
    right = ("reported to step", "silent, s", "went on from", "steps taken twice", "same result")
    table = table_of("Trainings that the lost node had", left, right)
    numbered = {pair.other.trial.number: pair for pair in compared if pair.other is not None}
    for one in found:
        pair = numbered[one.trial]
        assert pair.other is not None
        lost = one.reached - one.saved
        table.add_row(
            label(pair.other.trial),
            f"{one.reached} of {steps}",
            f"{one.silent:.1f}",
            f"step {one.saved}" if one.saved else "the start",
            f"{lost} to {lost + each}",
            ("yes" if pair.equal else "NO") if pair.alike else "asked in one study only",
        )
    return table


def verdict(pair: Pair) -> str:
    """A pair in words."""
    if pair.wrong:
        return "NOT THE SAME: " + ("results" if pair.alike else "what was asked for")
    if not pair.alike:
        return "another mixture"
    return "same mixture, same results" if pair.must else "same mixture anyway, same results"


def compared_table(compared: Sequence[Pair]) -> Table:
    """Training by training, what had to be the same and what was."""
    table = table_of(
        "Both histories, training by training",
        ("left alone", "node lost", "mixture must be the same", "and was it"),
        ("score", "score"),
    )
    for pair in compared:
        table.add_row(
            *(label(a.trial) if a else "none" for a in (pair.one, pair.other)),
            _why(pair),
            verdict(pair),
            *(rounded(a.trial.score, 6) if a else "" for a in (pair.one, pair.other)),
        )
    return table


def _why(pair: Pair) -> str:
    known = pair.one or pair.other
    assert known is not None
    if not pair.must:
        return "no: saw other trainings told"
    return "yes: saw the same" if known.saw else "yes: looks at nothing"


def said(compared: Sequence[Pair]) -> str:
    """The comparison in a sentence or two."""
    must = [pair for pair in compared if pair.must]
    alike = [pair for pair in compared if pair.alike]
    return (
        f"{len(must)} trainings had to be asked for with the same mixture: "
        f"{sum(pair.alike for pair in must)} were. "
        f"{len(alike)} were asked for with the same mixture and had to come to the same results, "
        f"to the last bit: {sum(pair.equal for pair in alike)} did."
    )


# ---- what is done ----


@dataclass(frozen=True)
class Ended:
    """A study that has run to its end. `left`: actors and placement groups of it."""

    folder: Path
    seconds: float
    pools: list[tuple[float, int]]
    left: list[str]


def conduct(
    experiment: Experiment, prepared: Prepared, watch: Watch, fate: Sequence[Fate] = ()
) -> Ended:
    """Run a study on the cluster that this process is connected to."""
    planned = _planned(experiment, prepared)
    watch.begin()
    with LiveTable(1 + planned, console) as live:
        folder = tune(experiment, listeners=(*fate, live), prepared=prepared).folder
    seconds, changes = watch.seconds, list(watch.changes)
    return Ended(folder, seconds, changes, _waited(held))


def _planned(experiment: Experiment, prepared: Prepared) -> int:
    return sum(trainings(plan(experiment, space(experiment, prepared.domains))).values())


def _waited(left: Callable[[], list[str]]) -> list[str]:
    """What is left when there was time to end."""
    end = time.monotonic() + PATIENCE
    while (found := left()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def both(
    whole: Experiment, lost: Experiment, at_once: int, steps: int, watch: Watch
) -> list[Ended]:
    """The study left alone, then the one that loses a node, on one cluster."""
    prepared = prepare(whole)
    console.print(f"starting a head that trains nothing and {NODES} nodes of one CPU each")
    with rehearsal(NODES, 1) as cluster, watch.watching():

        def lose_one() -> None:
            node = sorted(next(iter(pools().values())))[0]
            watch.lost.add(node)
            console.print(f"[bold]{watch.seconds:.0f} s: node {node[:8]} is lost[/bold]")
            lose(cluster, node)

        def join_one() -> None:
            node = join(cluster, 1)
            console.print(f"[bold]{watch.seconds:.0f} s: node {node[:8]} has joined[/bold]")

        console.print("\n[bold]the study, left alone[/bold]")
        first = conduct(whole, prepared, watch)
        console.print("\n[bold]the same study; a node is lost[/bold]")
        fate = Fate(_planned(lost, prepared), at_once, steps, lose_one, join_one)
        second = conduct(lost, prepared, watch, (fate,))
        if not fate.lost:
            raise ConfigError("the study was over before a node could be lost: give more --trials")
    return [first, second]


def main(
    folder: Annotated[Path, typer.Option(help="Everything is written here.")] = Path(
        "runs/node_lost"
    ),
    domains: Annotated[int, typer.Option(min=3, max=5, help="Of the embedded suite.")] = 5,
    trials: Annotated[int, typer.Option(min=2, help="Trials of each of two searchers.")] = 12,
    steps: Annotated[int, typer.Option(min=30, help="Optimizer steps of a training.")] = 150,
    seeds: Annotated[int, typer.Option(min=0, help="Fresh seeds for the verdict.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the study.")] = 0,
    pools: Annotated[int, typer.Option(min=1, max=NODES, help="Trainings at once.")] = NODES,
) -> None:
    """Lose a node in mid-trial, and show that nothing else was lost."""
    with told():
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--folder: {folder} is a file")
        for name in ("whole", "lost"):
            if (folder / name / FILE).exists():
                raise ConfigError(f"--folder: {folder / name} holds a study; choose another folder")
        base = describe(folder, domains, trials, seeds, seed)
        whole, lost = (
            study(base, folder / name, steps, seeds, pools) for name in ("whole", "lost")
        )
        watch = Watch()
        ended = both(whole, lost, pools, steps, watch)
        if not show(ended, steps, _waited(watch.left), len(watch.processes)):
            raise typer.Exit(1)


def show(ended: Sequence[Ended], steps: int, running: Sequence[str], processes: int) -> bool:
    """Print what came of it; whether all is as it must be."""
    first, second = ended
    events = [read_events(each.folder) for each in ended]
    compared = pairs(*(asked(each, BLIND) for each in events))
    found = struck(events[1], SAVES * (steps // REPORTS))
    console.print(report(read(second.folder)))
    if found:
        console.print(struck_table(found, steps, compared))
    else:
        console.print("\nno training had reported anything between its checkpoint and the loss")
    console.print(pools_table({"left alone": first.pools, "node lost": second.pools}))
    console.print(compared_table(compared))
    console.print(f"\n{said(compared)}", soft_wrap=True)
    console.print(f"seconds: {first.seconds:.0f} left alone, {second.seconds:.0f} with a node lost")
    left = [*first.left, *second.left]
    console.print(f"actors and placement groups left behind: {'; '.join(left) or 'none'}")
    console.print(f"processes, of {processes} seen, left behind: {'; '.join(running) or 'none'}")
    return not (any(pair.wrong for pair in compared) or left or running)


if __name__ == "__main__":
    typer.run(main)
