"""How a training is run: the user's `training:` block, and all that workers share in a study."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raymix.core.influence import Thresholds
from raymix.data.fetch import Content
from raymix.data.leak import Prompts


class Training(BaseModel):
    """Settings of one training, under the names that transformers and TRL give them.

    Batch sizes count rows, or packs of `max_length` tokens with `packing`. One optimizer step takes
    `per_device_train_batch_size * gradient_accumulation_steps * workers` of them.
    `warmup_steps` below 1 is a fraction of the budget. `bf16` None: on where the GPU has it.
    `offload_gradients`: reweighters that compare the domains' gradients keep them in host memory.

    `num_virtual_tokens`, `prompt_tuning_init` and `prompt_tuning_init_text` are peft's, of the soft
    prompt that some strategies train; its own `prompt_learning_rate` does without weight decay.
    With `packing` each row of a pack has the prompt before it, by which the pack grows.
    `merge_lora`: adapters are added into the weights of a saved model; else they lie beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(2e-5, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.03, ge=0)
    per_device_train_batch_size: int = Field(8, ge=1)
    per_device_eval_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0)
    max_length: int = Field(1024, ge=2)
    packing: bool = False
    assistant_only_loss: bool = True
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    attn_implementation: str | None = None
    offload_gradients: bool = False
    eval_steps: int | None = Field(None, ge=1)
    eval_rows: int | None = Field(None, ge=1)
    save_steps: int | None = Field(None, ge=1)
    use_peft: bool = False
    lora_r: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    merge_lora: bool = False
    num_virtual_tokens: int = Field(20, ge=1)
    prompt_tuning_init: Literal["random", "sample_vocab", "text"] = "sample_vocab"
    prompt_tuning_init_text: str | None = Field(None, min_length=1)
    prompt_learning_rate: float = Field(0.03, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Accept `warmup_ratio`, which transformers 5 dropped; name what belongs elsewhere."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "warmup_ratio" in values:
            warnings.warn(
                "training.warmup_ratio is gone from transformers 5; use warmup_steps below 1",
                FutureWarning,
                stacklevel=2,
            )
            values["warmup_steps"] = values.pop("warmup_ratio")
        for name in ("num_train_epochs", "max_steps"):
            if name in values:
                raise ValueError(f"{name} is not used: the length of a training is mixture.budget")
        return values

    @field_validator("learning_rate", "prompt_learning_rate")
    @classmethod
    def _sane(cls, value: float) -> float:
        if value > 10:
            raise ValueError(f"learning_rate {value} is above 10")
        return value

    @model_validator(mode="after")
    def _text(self) -> Training:
        """Refuse a prompt that starts from a text which is not there, or one that nobody uses."""
        if (self.prompt_tuning_init == "text") != (self.prompt_tuning_init_text is not None):
            raise ValueError(
                "prompt_tuning_init_text goes with prompt_tuning_init text, and only with it"
            )
        return self


class InfluenceSettings(BaseModel):
    """How the influence of domains is measured on a trained model.

    `layers`: "all" linear layers but embedding and head; "low-variance", the `layer_share` of them
    with the least relative variance of curvature eigenvalues (IDEAL's choice); or patterns of names
    such as "*.mlp.*". `fisher` "true" draws labels from the model, "empirical" takes the data's.
    `damping` is relative to each layer's mean eigenvalue. `train_rows`: gradients are taken of at
    most so many rows of a domain. `batch_size` None: `training.per_device_eval_batch_size`.
    `max_memory_gb` bounds curvature factors on one worker, in layer groups; None: half of the
    memory that is free. `exact`: solve with the whole curvature too (conjugate gradients; small
    models only). `trust`: see `core.influence.Thresholds`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: str | tuple[str, ...] = "all"
    layer_share: float = Field(0.5, gt=0, le=1)
    fisher: Literal["true", "empirical"] = "true"
    damping: float = Field(0.1, gt=0)
    train_rows: int = Field(512, ge=2)
    batch_size: int | None = Field(None, ge=1)
    max_memory_gb: float | None = Field(None, gt=0)
    exact: bool = False
    trust: Thresholds = Thresholds()


@dataclass(frozen=True)
class Setup:
    """What every training of a study shares; sent to each worker once, as JSON.

    `models`: folder or hub id by name ("target", and proxies). `stores`: for each domain the
    prepared files of its splits (see `data.store`), `{"math": {"train": path, "eval": path}}`.
    `output_dir`: checkpoints go to `<output_dir>/checkpoints/trial-<number>`. `tokenizer` (folder
    or hub id; None: the model's own) and `chat_template` (file) go into saved models.
    `leak`: prompts for the format leak; None: it is not measured. `contents`: what is in the tables
    of `stores` and `leak`, by path; a node that does not see one of these paths fetches its copy
    from `<output_dir>/data` (see `data.fetch`), while the paths stay the driver's.
    """

    models: Mapping[str, str]
    training: Training
    stores: Mapping[str, Mapping[str, str]]
    output_dir: str
    trust_remote_code: bool = False
    influence: InfluenceSettings = field(default_factory=InfluenceSettings)
    tokenizer: str | None = None
    chat_template: str | None = None
    leak: Prompts | None = None
    contents: Mapping[str, Content] = field(default_factory=dict)
