"""Tunes the embedded suite: five small skills, a tiny Llama, a few minutes on two cores.

Everything is made here from seeds: no model or data is downloaded. `make demo` runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymix.cli import finish, run
from raymix.experiment.config import Experiment
from raymix.testing.suite import RECIPE, write_suite


def describe(folder: Path, domains: int, trials: int, seeds: int, seed: int) -> Experiment:
    """The suite as an experiment like any other."""
    suite = write_suite(folder / "suite", domains)
    splits = ("eval", "test")
    return Experiment.model_validate(
        {
            "study": {"name": "quickstart", "seed": seed, "output_dir": str(folder / "study")},
            "model_name_or_path": str(suite.model),
            "datasets": [
                {"domain": name, "path": str(suite.data(name, "train"))}
                | {f"{split}_path": str(suite.data(name, split)) for split in splits}
                for name in suite.names
            ],
            "mixture": {"unit": "examples", "budget": RECIPE.examples},
            "training": {
                "learning_rate": RECIPE.learning_rate,
                "per_device_train_batch_size": RECIPE.batch_size,
                "per_device_eval_batch_size": 256,
                "warmup_steps": RECIPE.warmup_steps,
                "max_grad_norm": RECIPE.clip_norm,
                "max_length": 32,
                "eval_steps": RECIPE.steps // 4,
            },
            "search": {
                "searchers": ["dirichlet", {"type": "optuna", "sampler": "tpe"}],
                "num_trials": trials,
                "objective": {"weights": dict(suite.objective)},
                "confirm": {"top_k": 2, "seeds": seeds},
            },
        }
    )


def main(
    folder: Annotated[Path, typer.Option(help="Everything is written here.")] = Path("runs/demo"),
    domains: Annotated[int, typer.Option(help="3, 4 or 5.")] = 5,
    trials: Annotated[int, typer.Option(help="Trials of each searcher.")] = 24,
    seeds: Annotated[int, typer.Option(help="Fresh seeds for the verdict.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the study.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with the study in the folder.")] = False,
) -> None:
    """Tune the embedded suite and show what came of it."""
    experiment = describe(folder, domains, trials, seeds, seed)
    finish(experiment, run(experiment, resume))


if __name__ == "__main__":
    typer.run(main)
