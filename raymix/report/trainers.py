"""The mixture in the configuration files of TRL, Axolotl and LLaMA-Factory.

What their knobs mean was read in their sources: TRL 1.16, Axolotl 0.18, LLaMA-Factory ff6d4d1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raymix.core.job import Json
from raymix.data.locate import Hub
from raymix.report.recipe import Portion, Recipe

Entry = dict[str, Any]

_SAME_IN_TRL = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "max_length",
    "packing",
    "assistant_only_loss",
    "bf16",
    "gradient_checkpointing",
    "torch_compile",
    "attn_implementation",
    "use_peft",
)
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")

_AXOLOTL = {
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "max_length": "sequence_len",
    "packing": "sample_packing",
    "gradient_checkpointing": "gradient_checkpointing",
    "torch_compile": "torch_compile",
    "attn_implementation": "attn_implementation",
}

_LLAMAFACTORY = {
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler_type",
    "per_device_train_batch_size": "per_device_train_batch_size",
    "per_device_eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "max_length": "cutoff_len",
    "packing": "packing",
    "bf16": "bf16",
    "torch_compile": "torch_compile",
}

_PREFIX = (
    "'split: train[:n]' takes the first n rows, not random ones: shuffle the data first if their "
    "order means something"
)


def trl(recipe: Recipe) -> dict[str, str]:
    """`trl sft --config trl.yaml`."""
    notes = [
        "TRL joins the entries and shuffles them, so rows are all it can count: a domain that is "
        "repeated stands here once per pass. num_train_epochs must stay 1",
        "`fraction` is not used: it sets shares but not the total, and never repeats a row",
        _PREFIX,
    ]
    entries = []
    for portion in recipe.portions():
        kind = portion.plan.layout.type
        if kind in ("alpaca", "sharegpt"):
            notes.append(
                f"WARNING: TRL does not read {kind} rows ('{portion.domain}'); write them as "
                "messages or prompt and completion"
            )
        notes += _renamed(portion)
        entries += [_load(portion, rows) for rows in portion.counts]
    notes += [
        f"WARNING: TRL takes the newest commit of '{p.domain}', raymix took {p.plan.train.revision}"
        for p in recipe.portions()
        if isinstance(p.plan.train, Hub) and p.plan.train.revision
    ]
    training = recipe.training
    names = _SAME_IN_TRL + (_LORA if training.get("use_peft") else ())
    body: Entry = {"model_name_or_path": recipe.model, "datasets": entries}
    body |= {name: training[name] for name in names if training.get(name) is not None}
    body |= {"num_train_epochs": 1, "seed": recipe.seed}
    return {"trl.yaml": recipe.header(notes) + _yaml(body)}


def axolotl(recipe: Recipe) -> dict[str, str]:
    """`axolotl train axolotl.yaml`."""
    training = recipe.training
    notes = [
        "Axolotl has no shares: a domain that is repeated stands here once per pass, "
        "deduplication is off and num_epochs must stay 1",
        _PREFIX,
    ]
    entries = []
    for portion in recipe.portions():
        shape, note = _axolotl_type(portion)
        notes += note
        entries += [{**_axolotl_place(portion, rows), **shape} for rows in portion.counts]
    body: Entry = {"base_model": recipe.model, "datasets": entries}
    body |= {"shuffle_merged_datasets": True, "dataset_exact_deduplication": False}
    body |= {"val_set_size": 0, "train_on_inputs": not training.get("assistant_only_loss", True)}
    body |= _named(training, _AXOLOTL) | _warmup(training)
    body["bf16"] = "auto" if training.get("bf16") is None else training["bf16"]
    if training.get("use_peft"):
        body["adapter"] = "lora"
        body |= {name: training[name] for name in _LORA[:3] if name in training}
        targets = training.get("lora_target_modules", "all-linear")
        if targets == "all-linear":
            body["lora_target_linear"] = True
        else:
            body["lora_target_modules"] = _plain(targets)
    body |= {"num_epochs": 1, "seed": recipe.seed}
    return {"axolotl.yaml": recipe.header(notes) + _yaml(body)}


def llamafactory(recipe: Recipe) -> dict[str, str]:
    """`llamafactory-cli train llamafactory.yaml`, with the `dataset_info.json` beside it."""
    training = recipe.training
    notes = [
        "mix_strategy is concat: interleave_probs with interleave_under would stop when the first "
        "domain ends, with interleave_over it would repeat the small ones until the largest ends",
        "num_samples draws that many rows at random; a domain that is repeated stands in "
        "dataset_info.json once per pass. num_train_epochs must stay 1",
        "set `template` to your model's",
    ]
    info: dict[str, Entry] = {}
    for portion in recipe.portions():
        entry, note = _llamafactory_entry(portion)
        notes += note
        for number, rows in enumerate(portion.counts, start=1):
            name = portion.domain if number == 1 else f"{portion.domain}-pass-{number}"
            info[name] = {**entry, "num_samples": rows}
    lora = bool(training.get("use_peft"))
    body: Entry = {"model_name_or_path": recipe.model, "stage": "sft", "do_train": True}
    body |= {"finetuning_type": "lora" if lora else "full", "template": "default"}
    body |= {"dataset_dir": ".", "dataset": ",".join(info), "mix_strategy": "concat"}
    body |= _named(training, _LLAMAFACTORY) | _warmup(training)
    if training.get("packing"):
        # Without it packed examples attend to one another.
        body["neat_packing"] = True
    body["train_on_prompt"] = not training.get("assistant_only_loss", True)
    body["disable_gradient_checkpointing"] = not training.get("gradient_checkpointing", False)
    if lora:
        body |= {"lora_rank": training.get("lora_r"), "lora_alpha": training.get("lora_alpha")}
        body |= {"lora_dropout": training.get("lora_dropout")}
        targets = training.get("lora_target_modules", "all-linear")
        body["lora_target"] = "all" if targets == "all-linear" else _plain(targets)
    body |= {"num_train_epochs": 1, "seed": recipe.seed}
    return {
        "llamafactory.yaml": recipe.header(notes) + _yaml(body),
        "dataset_info.json": json.dumps(info, indent=2, ensure_ascii=False) + "\n",
    }


def _load(portion: Portion, rows: int) -> Entry:
    """Arguments of `datasets.load_dataset` for the first `rows` rows."""
    train = portion.plan.train
    if isinstance(train, Hub):
        found: Entry = {"path": train.id}
        if train.name is not None:
            found["name"] = train.name
        if train.data_files is not None:
            found["data_files"] = _plain(train.data_files)
        return {**found, "split": f"{train.split}[:{rows}]"}
    files: Any = list(portion.files) if len(portion.files) > 1 else portion.files[0]
    return {"path": portion.builder, "data_files": files, "split": f"train[:{rows}]"}


def _axolotl_place(portion: Portion, rows: int) -> Entry:
    """Axolotl takes the file as the path; several files need the folder as well."""
    load = _load(portion, rows)
    if not portion.files:
        return load
    if len(portion.files) == 1:
        return {"path": portion.files[0], "ds_type": load["path"], "split": load["split"]}
    folder = portion.files[0].rpartition("/")[0]
    return {**load, "path": folder, "ds_type": load["path"]}


def _renamed(portion: Portion) -> list[str]:
    columns = {k: v for k, v in portion.plan.layout.columns.items() if v and k != v}
    if not columns:
        return []
    names = ", ".join(f"{theirs} to {ours}" for ours, theirs in columns.items())
    return [f"WARNING: rename the columns of '{portion.domain}': {names}"]


def _axolotl_type(portion: Portion) -> tuple[Entry, list[str]]:
    """The entry's `type`, and what to say about it."""
    layout = portion.plan.layout
    kind = layout.type or "messages"
    note = []
    if layout.type is None:
        note.append(f"WARNING: check the type of '{portion.domain}'; raymix told it row by row")
    if kind in ("messages", "sharegpt"):
        role, content = ("role", "content") if kind == "messages" else ("from", "value")
        mapping = {"role": layout.column(role), "content": layout.column(content)}
        turns = layout.column("messages" if kind == "messages" else "conversations")
        shape: Entry = {"type": "chat_template", "field_messages": turns}
        shape["message_property_mappings"] = mapping
        shape["roles_to_train"] = ["assistant"] if kind == "messages" else ["assistant", "gpt"]
        return shape, note
    if kind == "text":
        return {"type": "completion", "field": layout.column("text")}, note
    if kind == "alpaca":
        note += _renamed(portion)
    note.append(
        f"WARNING: Axolotl writes '{portion.domain}' with its own prompt format, raymix with the "
        "chat template"
    )
    if kind == "alpaca":
        return {"type": "alpaca"}, note
    fields = {
        "field_instruction": layout.column("prompt"),
        "field_output": layout.column("completion"),
    }
    return {"type": {**fields, "format": "{instruction}", "no_input_format": "{instruction}"}}, note


def _llamafactory_entry(portion: Portion) -> tuple[Entry, list[str]]:
    """The domain in `dataset_info.json`, and what to say about it."""
    layout, train = portion.plan.layout, portion.plan.train
    kind = layout.type or "messages"
    note = []
    if layout.type is None:
        note.append(f"WARNING: check the format of '{portion.domain}'; raymix told it row by row")
    entry: Entry
    if isinstance(train, Hub):
        entry = {"hf_hub_url": train.id, "split": train.split}
        entry |= {"subset": train.name} if train.name else {}
        entry |= {"revision": train.revision} if train.revision else {}
    else:
        entry = {"file_name": portion.files[0]}
        if len(portion.files) > 1:
            folder = portion.files[0].rpartition("/")[0]
            entry = {"file_name": folder}
            note.append(f"WARNING: '{portion.domain}' has several files: all of {folder} is read")
    if kind in ("messages", "sharegpt"):
        entry["formatting"] = "sharegpt"
        turns = "messages" if kind == "messages" else "conversations"
        entry["columns"] = {"messages": layout.column(turns)}
        if kind == "messages":
            entry["tags"] = {
                "role_tag": layout.column("role"),
                "content_tag": layout.column("content"),
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            }
    elif kind == "text":
        entry["columns"] = {"prompt": layout.column("text")}
        note.append(
            f"WARNING: '{portion.domain}' is plain text, which LLaMA-Factory reads in stage pt"
        )
    else:
        ours = (
            ("instruction", "input", "output") if kind == "alpaca" else ("prompt", "", "completion")
        )
        theirs = ("prompt", "query", "response")
        entry["columns"] = {t: layout.column(o) for t, o in zip(theirs, ours, strict=True) if o}
    return entry, note


def _named(training: Mapping[str, Json], names: Mapping[str, str]) -> Entry:
    return {
        theirs: training[ours] for ours, theirs in names.items() if training.get(ours) is not None
    }


def _warmup(training: Mapping[str, Json]) -> Entry:
    """Both still have the ratio as an argument of its own."""
    steps = training.get("warmup_steps")
    if steps is None:
        return {}
    return {"warmup_ratio": steps} if steps < 1 else {"warmup_steps": int(steps)}


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _yaml(body: Entry) -> str:
    return yaml.safe_dump(_plain(body), sort_keys=False, allow_unicode=True, width=100)
