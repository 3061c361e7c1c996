"""Scores of models on tasks of EleutherAI's lm-evaluation-harness, its own tasks or yours.

    python experiments/harness.py uniform=runs/a/model best=runs/b/model --tasks arc_easy,my_task \
        --include-path my_tasks

Needs `pip install "raymix[lm-eval]"`. A model is a folder in Hugging Face form, such as `raymix
train` and `raymix export` write. Tasks of your own are YAML files below `--include-path`; with data
files of your own they need no network. A relative path in their `data_files` is relative to the
working directory, as it is for lm-eval itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from accelerate.utils import release_memory
from rich.console import Console
from rich.table import Table

from raymix.core.errors import ConfigError, nearest

ERROR = "_stderr"
"""Ends the name of a metric's standard error, as in lm-eval."""


def lm_eval_scores(
    models: Mapping[str, Path],
    tasks: Sequence[str],
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int | str = 8,
    device: str | None = None,
    chat: bool = False,
) -> dict[str, dict[str, float]]:
    """Run the harness on one model after another.

    All tasks are read before a model is. The harness seeds the global generators of Python, NumPy
    and torch; rows and few-shot examples are the same for all models.

    Args:
        models: folder in Hugging Face form, weights and tokenizer, by the name to show it under.
        tasks: names of tasks, groups or tags, or patterns such as "mmlu_*".
        include_path: folder with YAML files of more tasks; they win over those of the same name.
        limit: so many rows of each task, its first; None: all. For trials only.
        batch_size: rows of a forward pass, or "auto".
        device: such as "cpu" or "cuda:0"; None: a GPU where there is one.
        chat: put prompts into the model's chat template, as a user's turn.

    Returns:
        For each model, values by "task/metric", "task/metric/filter" where the task filters the
        answers by a rule with a name. Standard errors end with "_stderr". Groups stand beside
        their tasks.

    Raises:
        ConfigError: lm_eval is not installed; a model, task or setting is wrong or has no data.
    """
    for name, folder in models.items():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model '{name}': {folder} has no config.json, so it is no model folder in Hugging "
                "Face form"
            )
    if not models:
        raise ConfigError("nothing to evaluate: no models")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    manager, wanted = known_tasks(tasks, include_path)
    import torch
    from lm_eval import simple_evaluate

    # Without a word the harness asks for CUDA, whether or not there is any.
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name, folder in models.items():
        answer = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder)},
            tasks=wanted,
            batch_size=batch_size,
            device=device,
            limit=limit,
            log_samples=False,
            apply_chat_template=chat,
            task_manager=manager,
        )
        found[name] = _scores(answer["results"])
        release_memory()
    return found


def known_tasks(tasks: Sequence[str], include_path: Path | None) -> tuple[Any, list[str]]:
    """The harness's task manager, and all names that match, of tasks whose data can be read.

    Raises:
        ConfigError: lm_eval is not installed, or a task does not exist or cannot be read.
    """
    names = list(dict.fromkeys(task.strip() for task in tasks if task.strip()))
    if not names:
        raise ConfigError("nothing to evaluate: no tasks")
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"include_path {include_path} is no folder")
    try:
        from lm_eval import tasks as offered
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'lm-evaluation-harness is not installed ({error}): pip install "raymix[lm-eval]"'
        ) from error
    manager = offered.TaskManager(include_path=str(include_path) if include_path else None)
    return manager, _known(manager, names)


def _known(manager: Any, names: Sequence[str]) -> list[str]:
    """All names that match, of tasks whose data can be read.

    Raises:
        ConfigError: says which does not exist, or cannot be read and why.
    """
    wanted: dict[str, None] = {}
    for name in names:
        matched = manager.match_tasks([name])
        if not matched:
            hint = nearest(name, manager.all_tasks)
            raise ConfigError(f"unknown task '{name}'{hint}; see `lm_eval ls tasks`")
        wanted |= dict.fromkeys(matched)
    for name in wanted:
        try:
            manager.load([name])
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(f"task '{name}' cannot be read: {said}") from error
    return list(wanted)


def _scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Numbers by "task/metric" out of what the harness says, `{task: {"metric,filter": value}}`."""
    found = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, rule = name.partition(",")
            if comma and isinstance(value, (int, float)):
                found["/".join([task, metric, *([] if rule == "none" else [rule])])] = float(value)
    return found


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each model, a column for each metric; standard errors behind the values."""
    keys = dict.fromkeys(key for values in scores.values() for key in values)
    shown = [key for key in keys if not key.split("/")[1].endswith(ERROR)]
    table = Table("model", title="lm-evaluation-harness")
    for key in shown:
        table.add_column(key, justify="right")
    for model, values in scores.items():
        table.add_row(model, *(_cell(values, key) for key in shown))
    return table


def _cell(values: Mapping[str, float], key: str) -> str:
    if key not in values:
        return ""
    task, metric, *rule = key.split("/")
    error = values.get("/".join([task, metric + ERROR, *rule]))
    return f"{values[key]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def named(models: Sequence[str]) -> dict[str, Path]:
    """Folders by name, out of "name=folder" or "folder", which goes by its last part.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Path] = {}
    for model in models:
        name, _, folder = model.rpartition("=")
        name = name or Path(folder).resolve().name
        if name in found:
            raise ConfigError(f"two models are called '{name}': give them names, as in a={folder}")
        found[name] = Path(folder)
    return found


def main(
    models: Annotated[list[str], typer.Argument(help="Model folders, or name=folder.")],
    tasks: Annotated[str, typer.Option(help="Names or patterns, with commas between.")],
    include_path: Annotated[Path | None, typer.Option(help="Folder with task YAML files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of each task; for trials.")] = None,
    batch_size: Annotated[str, typer.Option(help='Rows of a pass, or "auto".')] = "8",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
) -> None:
    """Score models on tasks of lm-evaluation-harness."""
    size: int | str = int(batch_size) if batch_size.isdigit() else batch_size
    try:
        scores = lm_eval_scores(
            named(models), tasks.split(","), include_path, limit, size, device, chat
        )
    except ConfigError as error:
        Console(stderr=True, markup=False).print(f"error: {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    Console().print(score_table(scores))


if __name__ == "__main__":
    typer.run(main)
