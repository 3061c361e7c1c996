"""What a checkpoint must have been made by, to be gone on from."""

from __future__ import annotations

from dataclasses import replace

from upath import UPath

from raymix.core.codec import encode, fingerprint
from raymix.core.errors import TrainingError
from raymix.core.job import Json, TrainJob
from raymix.storage.place import place
from raymix.train import checkpoint
from raymix.train.config import Setup


def identity(job: TrainJob, setup: Setup) -> str:
    """Fingerprint of what a checkpoint must have been made by, to be gone on from.

    How the work is cut up and how often it is saved may differ between two deliveries.
    """
    what = setup.training.model_dump(mode="json", exclude=_HOW)
    stores = {domain: dict(paths) for domain, paths in setup.stores.items()}
    return fingerprint(encode(replace(job, attempt=0)), setup.models[job.model], stores, what)


def turning(job: TrainJob, setup: Setup) -> str:
    """Fingerprint of how a job begins: jobs of equal ones may share their first stage."""
    first = TrainJob(
        0,
        job.stages[:1],
        job.space,
        job.seed,
        job.model,
        reference=job.reference,
        start=job.start,
    )
    return identity(first, setup)


def previous(folder: UPath, job: TrainJob, setup: Setup) -> tuple[UPath, dict[str, Json]] | None:
    """What `job` goes on from: its newest checkpoint in `folder`, or the one it branches off.

    Raises:
        TrainingError: it does not begin as the job that it is to branch off.
    """
    own = checkpoint.newest(folder, identity(job, setup))
    if own is not None or job.branch is None:
        return own
    trunk = place(job.branch)
    state = checkpoint.read(trunk)
    if state["turn"] != turning(job, setup):
        raise TrainingError(f"cannot branch off {trunk}: it was trained in another way")
    return trunk, state


_HOW = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "torch_compile",
    "attn_implementation",
    "offload_gradients",
    "save_steps",
    "merge_lora",
}
