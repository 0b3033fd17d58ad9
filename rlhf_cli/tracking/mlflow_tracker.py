"""MLflow: a run of an experiment, in the store that MLFLOW_TRACKING_URI names or in the run's own folder."""

import os
import time
from pathlib import Path
from typing import Any

from rlhf_cli.tracking.tensorboard_tracker import scalars_of
from rlhf_cli.tracking.wandb_tracker import without_secrets

LONGEST = 500
"""Characters of a parameter that MLflow takes."""
AT_ONCE = 100
"""Parameters of one call."""
RUN = "mlflow_run"
"""The file in a run's folder that names its MLflow run, so that a resumed one goes on there."""
ENDS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Metrics by step, the config as parameters, samples as JSON artifacts. Steps that a resumed run takes again stand
    there twice."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *, project: str, name: str | None, group: str | None
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, named = Metric, folder / RUN
        own = os.environ.get("MLFLOW_TRACKING_URI") is None
        self._client = MlflowClient(f"sqlite:///{(folder / 'mlflow.db').absolute()}" if own else None)
        if named.is_file():
            self._run = named.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(project)
        artifacts = (folder / "mlflow").absolute().as_uri() if own else None
        experiment = known.experiment_id if known else self._client.create_experiment(project, artifacts)
        tags = {"group": group} if group else {}
        self._run = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        leaves = scalars_of(without_secrets(config)).items()
        params = [Param(key, str(value)[:LONGEST]) for key, value in leaves]
        for at in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._run, params=params[at : at + AT_ONCE])
        named.write_text(self._run + "\n", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(name, float(v), now, step) for name, v in metrics.items()])

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._client.log_dict(self._run, {"rows": rows}, f"samples/step_{step:06d}.json")

    def message(self, text: str) -> None:
        """Messages are for the console."""

    def alert(self, title: str, text: str) -> None:
        self._client.set_tag(self._run, "alert", f"{title}: {text}")

    def finish(self, state: str) -> None:
        self._client.set_terminated(self._run, ENDS[state])
