"""Sink `mlflow`."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.record.sinks._network import answers, without_secrets
from esmpi.record.sinks.base import Sink, first_gap, row_of_sample

_UUID = "esmpi.run_uuid"
_MOST_PARAMETERS = 100
"""In one request, as servers allow."""


class MLflow(Sink):
    """A run of MLflow's experiment `esmpi`, with completions of members as artifacts.

    It is at MLFLOW_TRACKING_URI, or in `<run directory>/mlruns`. A resumed run is found by its uuid, and a figure that
    is there is not written again.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        # a folder of files needs no server and no database, which is what a compute node has
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # without these, a server that is gone would hold up the run for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (directory / "mlruns").absolute().as_uri()
        if uri.startswith(("http://", "https://")) and not answers(uri):
            raise UserError(f"log.sinks: mlflow: no server answers at MLFLOW_TRACKING_URI={without_secrets(uri)}")
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name("esmpi")
        number = self._client.create_experiment("esmpi") if experiment is None else experiment.experiment_id
        uuid, name = attributes["run_uuid"], attributes["config"]["run"]["name"]
        found = self._client.search_runs([number], f"tags.`{_UUID}` = '{uuid}'", max_results=1)
        run = found[0] if found else self._client.create_run(number, run_name=name, tags={_UUID: uuid})
        self._id = run.info.run_id
        if found:
            self._client.set_terminated(self._id, "RUNNING")
        else:
            self._write_config(attributes["config"])
        self._known = {
            (metric.key, metric.step)
            for key in run.data.metrics
            for metric in self._client.get_metric_history(self._id, key)
        }
        shown = {step for key, step in self._known if key == "generation/fitness_mean"}
        self.lacks_from = min(first_gap(shown, first), max(0, first - 1))  # which may lack its completions

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(f"{group}/{name}", float(value), now, generation)
            for name, value in figures.items()
            if (f"{group}/{name}", generation) not in self._known
        ]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        if samples:
            rows = [row_of_sample(sample) for sample in samples]
            table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
            self._client.log_dict(self._id, table, f"samples/g{generation:06d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _write_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        from mlflow.entities import Param

        values = [
            Param(f"{section}.{key}", str(value)[:500])
            for section, keys in config.items()
            for key, value in keys.items()
        ]
        for start in range(0, len(values), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=values[start : start + _MOST_PARAMETERS])
        self._client.log_dict(self._id, dict(config), "config.json")
