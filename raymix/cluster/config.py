"""Where trainings run: the user's `cluster:` block. Imports no Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Cluster(BaseModel):
    """Where trainings run.

    `runner`: "ray", or "local" for one process without Ray (debugging). `address` None: connect to
    a running cluster if RAY_ADDRESS names one, else start Ray on this machine. `num_workers`:
    workers per training (2 or more: sharded with FSDP2). `pools`: worker groups held at once, None:
    as many as fit; where nodes go there are fewer, where they come there are more again. `use_gpu`
    None: where the cluster has GPUs. `step_timeout`: seconds after which a training that neither
    takes an optimizer step nor reports is ended and begun again on fresh workers, three times at
    the most unless it comes further each time; a long evaluation counts as silence. None: no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runner: Literal["ray", "local"] = "ray"
    address: str | None = None
    num_workers: int = Field(1, ge=1)
    pools: int | None = Field(None, ge=1)
    use_gpu: bool | None = None
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(1, gt=0)
    step_timeout: float | None = Field(1800, gt=0)


class EarlyStopping(BaseModel):
    """Which trainings end before their budget does: the user's `search.early_stopping:` block.

    "asha" compares a search trial with the others at rungs of its budget: the first at `grace` of
    it, each next one `reduction_factor` times later; of those that came to a rung, the best
    1/`reduction_factor` go on. Points are reported every `training.eval_steps`, which it needs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheduler: Literal["none", "asha"] = "none"
    grace: float = Field(0.25, gt=0, lt=1)
    reduction_factor: float = Field(3.0, gt=1)
