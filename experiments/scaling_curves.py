"""How losses fall with the amount of data: domains alone, together, and in pairs, on two sizes.

The scaling studies of DMT's source (arXiv 2310.05492). On the embedded suite, or with `--config` on
your own data and models (the smaller or larger ones in `proxies`).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from quickstart import describe
from rich.console import Console

from raymix.cli import look, told
from raymix.core.errors import ConfigError
from raymix.experiment.config import Experiment
from raymix.experiment.curves import FRACTIONS, Asked, Drawing, draw, drawing
from raymix.experiment.load import load
from raymix.report.curve_tables import curves_report
from raymix.report.curve_words import part
from raymix.report.curves import scaling_of
from raymix.study.plan import trainings
from raymix.testing.suite import SuitePaths, write_larger, write_suite
from raymix.track.live import LiveTable

LARGER = "larger"
BATCH = 8
"""Rows of a step on the suite; with the recipe's 32 most parts would be a step or two."""

SUITE_PAIRS = ("cipher,edges", "cipher,copy")
"""Similar (`edges` needs part of the cipher), and with nothing in common."""

DEFAULT = ",".join(part(fraction) for fraction in FRACTIONS)

console = Console(width=140)


def suite(folder: Path) -> Experiment:
    """The embedded suite with its base model in two sizes."""
    found = describe(folder, 5, 0, 0, 0)
    written: SuitePaths = write_suite(folder / "suite")
    training = found.training.model_copy(
        update={"per_device_train_batch_size": BATCH, "warmup_steps": 0.1, "eval_steps": None}
    )
    study = found.study.model_copy(update={"name": "scaling"})
    larger = {LARGER: str(write_larger(written))}
    return found.model_copy(update={"training": training, "study": study, "proxies": larger})


def parts(text: str) -> tuple[float, ...]:
    """Fractions such as `1,1/4,0.05`; raises ConfigError."""
    try:
        return tuple(float(Fraction(each.strip())) for each in text.split(",") if each.strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--fractions: cannot read '{text}'; write for instance 1,1/4,1/16"
        ) from None


def couples(given: list[str]) -> tuple[tuple[str, str], ...] | None:
    """Pairs such as `math,code`, the first in full; None where none is given."""
    found = []
    for text in given:
        names = [name.strip() for name in text.split(",")]
        if len(names) != 2 or not all(names):
            raise ConfigError(f"--pair: two domains with a comma between them, got '{text}'")
        found.append((names[0], names[1]))
    return tuple(found) or None


def announce(ready: Drawing, given: bool) -> None:
    """Say what will be trained, and what will not."""
    curves, domains = ready.curves, ready.prepared.domains
    count = sum(trainings(ready.plan).values())
    rows = ", ".join(f"{domain.name} {domain.rows:,}" for domain in domains)
    console.print(
        f"{count} trainings of {curves.epochs} epochs each: {len(curves.models)} model(s), "
        f"{curves.repeats} seed(s); train rows: {rows}"
    )
    if curves.pairs and not given:
        fixed, varied = curves.pairs[0]
        console.print(
            f"no --pair given: {fixed} in full with {varied} varied, the first two domains (which "
            "domains are alike cannot be known beforehand)"
        )
    if len(curves.models) == 1:
        console.print("one model: name another size in `proxies` to see whether its curves differ")
    for name, fraction in curves.left_out(ready.plan.space):
        console.print(f"left out: {part(fraction)} of {name} is less than one row")


def main(
    config: Annotated[Path | None, typer.Option(help="An experiment of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="All is written here.")] = Path("runs/scaling"),
    fractions: Annotated[str, typer.Option(help="Of the data, at least 3.")] = DEFAULT,
    epochs: Annotated[int, typer.Option(help="Of every training; the source's are 3.")] = 3,
    seeds: Annotated[int, typer.Option(help="Of every training.")] = 4,
    pair: Annotated[
        list[str] | None, typer.Option(help="a,b: a in full, b varied; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the study in the folder.")] = False,
) -> None:
    """Draw the scaling curves and say what grows, what is saturated, and where mixing helps."""
    with told():
        wanted, given = parts(fractions), couples(pair or ([] if config else list(SUITE_PAIRS)))
        base = load(config) if config else suite(folder)
        study = base.study.model_copy(update={"output_dir": str(folder)})
        base = base.model_copy(update={"study": study})
        ready = drawing(base, Asked(wanted, epochs, seeds, given))
        announce(ready, given is not None)
        # The base model is evaluated in every size.
        total = sum(trainings(ready.plan).values()) + len(ready.curves.models)
        with LiveTable(total, console) as live:
            record = draw(ready, resume, (live,))
        console.print(curves_report(scaling_of(record)))
        for name in ("curves.json", "alone.png", "together.png", "pairs.png"):
            if (ready.folder / name).exists():
                console.print(f"written  {ready.folder / name}", soft_wrap=True)
        look(ready.experiment)


if __name__ == "__main__":
    typer.run(main)
