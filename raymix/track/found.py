"""What MLflow has already: the experiment, and the runs of a study."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

STUDY, TRIAL = "raymix.study", "raymix.trial"
"""Tags by which a run is known: of which study, and of which of its trials."""


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The experiment of this name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, _artifacts(uri)))
        except MlflowException:
            # Another study began at the same time, or this request was sent twice.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def search(client: MlflowClient, experiment: str, study: str, *conditions: str) -> list[Run]:
    """The runs of a study for which all `conditions` hold."""
    asked = " and ".join((f"tags.`{STUDY}` = '{study}'", *conditions))
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], asked, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def filled(run: Run) -> tuple[int, int]:
    """How much was written to a run, to be compared with another."""
    return len(run.data.metrics), len(run.data.params)


def _artifacts(uri: str) -> str | None:
    """Beside the database, where there is no server; MLflow's default is the working folder."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///")).resolve()
    return (database.parent / "mlruns").as_uri()
