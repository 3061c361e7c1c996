"""The command line: check, preview, plan, tune, status, report, influence, export, train."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from upath import UPath

from raymix.core.errors import RaymixError, StudyError
from raymix.experiment.config import Experiment
from raymix.experiment.run import Outcome
from raymix.search.counts import Total

app = typer.Typer(
    help="Finds the mixture of supervised fine-tuning data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# No markup: a path or a list in an override may have square brackets.
console = Console(soft_wrap=False, markup=False)
errors = Console(stderr=True, markup=False)

Config = Annotated[Path, typer.Argument(help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides, such as search.num_trials=8.")
]
Folder = Annotated[str, typer.Argument(help="The study's folder (study.output_dir).")]
Weights = Annotated[str, typer.Option(help="Shares by domain, such as math=.5,code=.3,chat=.2.")]
File = Annotated[str, typer.Option(help="A best_mixture.yaml; default: the prior.")]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Print an expected error as one message and exit with 1."""
    try:
        yield
    except RaymixError as error:
        said = Text.assemble(("error:", "bold red"), f" {error}")
        errors.print(said, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _resumable(
    verb: str, config: Path, overrides: list[str] | None, *options: str
) -> Iterator[None]:
    """Say how a study that was interrupted is gone on with, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        words = ["raymix", verb, str(config), *(overrides or ()), *options, "--resume"]
        again = shlex.join(words)
        errors.print(f"\nstopped; the history is whole. Go on with:\n  {again}", soft_wrap=True)
        raise typer.Exit(130) from None


@app.command()
def check(config: Config, overrides: Overrides = None) -> None:
    """Check the experiment: keys, data, templates, masks, caps. Trains nothing."""
    with told():
        from raymix.experiment.build import asks_influence, plan, prepare, space
        from raymix.experiment.load import load
        from raymix.experiment.needs import check_influence
        from raymix.experiment.preview import orders
        from raymix.experiment.tables import prepared_table, stages_table

        experiment = load(config, overrides or ())
        prepared = prepare(experiment)
        plan(experiment, space(experiment, prepared.domains))
        if asks_influence(experiment):
            check_influence(experiment, prepared)
        console.print(prepared_table(prepared))
        for words, drawn in orders(experiment, prepared).items():
            console.print(stages_table(f"{words} on the prior", drawn))
        console.print(Text.assemble(("ok", "green"), ": this experiment can be run"))


@app.command()
def preview(config: Config, overrides: Overrides = None, weights: Weights = "") -> None:
    """Show what a mixture will realise per domain: share, rows, epochs, tokens, what binds."""
    with told():
        from raymix.experiment.build import prepare
        from raymix.experiment.load import load
        from raymix.experiment.preview import preview as foresee
        from raymix.experiment.tables import preview_table
        from raymix.experiment.weights import written

        experiment = load(config, overrides or ())
        mixture = written(weights, experiment.names)
        console.print(preview_table(foresee(experiment, prepare(experiment), mixture)))


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Say how many trainings, how many tokens and about how long, without a GPU."""
    with told():
        from raymix.experiment.build import asks_influence, prepare
        from raymix.experiment.estimate import estimate
        from raymix.experiment.load import load
        from raymix.experiment.needs import needs
        from raymix.experiment.preview import orders
        from raymix.experiment.tables import estimate_table, needs_table, stages_table

        experiment = load(config, overrides or ())
        console.print(estimate_table(estimate(experiment)))
        for words, drawn in orders(experiment, prepare(experiment, weights=False)).items():
            console.print(stages_table(f"{words} on the prior", drawn))
        if asks_influence(experiment):
            console.print(needs_table(needs(experiment, prepare(experiment, weights=False))))


@app.command()
def tune(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the study in its folder.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check and plan; train nothing.")] = False,
) -> None:
    """Search for the mixture."""
    if dry_run:
        check(config, overrides)
        plan(config, overrides)
        return
    with told():
        from raymix.experiment.load import load

        experiment = load(config, overrides or ())
        with _resumable("tune", config, overrides):
            outcome = run(experiment, resume)
        finish(experiment, outcome)
        if outcome.best is None:
            failed = (t.result.error for t in outcome.history if t.result and t.result.error)
            raise StudyError(f"no training has succeeded: {next(failed, 'none was asked for')}")


def run(experiment: Experiment, resume: bool = False) -> Outcome:
    """Run a study with the live table on this terminal."""
    from raymix.experiment.build import plan, prepare, space
    from raymix.experiment.run import tune as run_study
    from raymix.study.plan import trainings
    from raymix.track.live import LiveTable

    prepared = prepare(experiment)
    planned = trainings(plan(experiment, space(experiment, prepared.domains)))
    # One more: the base model is evaluated.
    with LiveTable(1 + sum(planned.values()), console) as live:
        return run_study(experiment, resume, (live,), prepared)


def finish(experiment: Experiment, outcome: Outcome) -> None:
    """Print the report, where everything lies, and how to look at it."""
    from raymix.report.table import report as tell
    from raymix.study.record import read

    console.print(tell(read(outcome.folder)))
    if outcome.best is not None:
        console.print(f"best mixture  {outcome.folder / 'best_mixture.yaml'}", soft_wrap=True)
        console.print(f"figures       {outcome.folder / 'figures'}", soft_wrap=True)
    look(experiment)


def look(experiment: Experiment) -> None:
    """Say where MLflow shows the study."""
    if experiment.tracking.report_to == "mlflow":
        uri = experiment.tracking.tracking_uri
        shown = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        console.print(f"compare       {shown}", soft_wrap=True)
        name = experiment.tracking.experiment_name
        console.print(f"              there: Model training > Experiments > {name} > Runs")


@app.command()
def status(folder: Folder) -> None:
    """Say how far a study is and what is best so far; it may be running."""
    with told():
        from raymix.report.table import status_table
        from raymix.study.record import read

        console.print(status_table(read(folder)))


@app.command()
def report(folder: Folder) -> None:
    """Print ranking, spread and verdict; write the figures and the best mixture."""
    with told():
        from raymix.report.table import report as tell
        from raymix.report.write import write_report
        from raymix.study.record import read
        from raymix.study.store import folder_of

        record = read(folder)
        console.print(tell(record))
        _publish(folder_of(folder), partial(write_report, record))


@app.command()
def influence(
    config: Config,
    overrides: Overrides = None,
    mixture: File = "",
    weights: Weights = "",
    validate: Annotated[bool, typer.Option(help="Hold it against retraining.")] = False,
    step: Annotated[float, typer.Option(help="Change of one domain's count in --validate.")] = 0.3,
    repeats: Annotated[int, typer.Option(help="Seeds in --validate.")] = 3,
    total: Annotated[
        Total, typer.Option(help="fixed: other domains make room; or free.")
    ] = "fixed",
    branch: Annotated[
        float, typer.Option(help="Retrain only from there on, such as .5: half the cost.")
    ] = 0.0,
    resume: Annotated[bool, typer.Option(help="Go on in its folder.")] = False,
) -> None:
    """Measure what more of each domain would do to each eval loss; --validate by retraining."""
    with told():
        from raymix.experiment.influence import Probe, measure, probing
        from raymix.experiment.load import load
        from raymix.experiment.weights import given
        from raymix.report.validation import probe_report
        from raymix.study.plan import trainings
        from raymix.track.live import LiveTable

        experiment = load(config, overrides or ())
        chosen = given(weights, mixture, experiment.names)
        ready = probing(experiment, Probe(chosen, validate, step, repeats, total, branch))
        planned = trainings(ready.plan)
        again = [f"--step={step}", f"--repeats={repeats}", f"--total={total}"]
        again += [f"--branch={branch}"] if branch else []
        again += ["--validate"] if validate else []
        again += [f"--weights={weights}"] if weights else []
        again += [f"--mixture={mixture}"] if mixture else []
        table = LiveTable(1 + sum(planned.values()), console)
        with _resumable("influence", config, overrides, *again), table as live:
            record = measure(ready, resume, (live,))
        console.print(probe_report(record, validate))
        console.print(f"all of it  {ready.folder}", soft_wrap=True)


@app.command()
def export(
    folder: Folder,
    to: Annotated[str, typer.Option(help="yaml, trl, axolotl, llamafactory or hf.")] = "yaml",
    out: Annotated[str | None, typer.Option(help="Write the files here; default: print.")] = None,
) -> None:
    """Write the best mixture in the words of another trainer, its meaning kept."""
    with told():
        from raymix.experiment.export import recipe_of
        from raymix.report.export import export as say
        from raymix.report.export import write
        from raymix.storage.place import place

        files = say(recipe_of(folder), to)
        for name, text in files.items() if out is None else ():
            errors.print(f"# {name}", style="bold")
            typer.echo(text)
        if out is not None:
            _publish(place(out), partial(write, files))


def _publish(home: UPath, write: Callable[[Path], Iterable[Path]]) -> None:
    """Have files written to a folder, which may be in an object store, and say which."""
    from raymix.storage.place import published

    with published(home) as here:
        for path in write(here):
            console.print(f"written: {home / path.relative_to(here)}", soft_wrap=True)


@app.command()
def train(
    config: Config,
    save: Annotated[str, typer.Option(help="Folder for the model.")],
    overrides: Overrides = None,
    mixture: File = "",
    weights: Weights = "",
) -> None:
    """Train once on one mixture and save a model that transformers loads."""
    with told():
        from raymix.experiment.load import load
        from raymix.experiment.run import train as run_training
        from raymix.experiment.tables import trained_table
        from raymix.experiment.weights import given, order_of

        experiment = load(config, overrides or ())
        chosen = given(weights, mixture, experiment.names)
        order, params = order_of(mixture)
        if order is not None:
            console.print(f"strategy  {order} {params or ''}, from {mixture}", soft_wrap=True)
        try:
            result = run_training(experiment, chosen, save, order, params)
        except KeyboardInterrupt:
            saved = experiment.training.save_steps is not None
            how = "goes on from the last checkpoint" if saved else "starts anew"
            errors.print(f"\nstopped; the same command {how} (training.save_steps)")
            raise typer.Exit(130) from None
        console.print(trained_table(result))
        console.print(f"model  {save}", soft_wrap=True)


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
