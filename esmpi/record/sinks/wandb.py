"""Sink `wandb`: Weights & Biases."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.record.sinks._network import answers
from esmpi.record.sinks._wandb_files import recorded_steps
from esmpi.record.sinks.base import Sink, first_gap, row_of_sample

log = logging.getLogger(__name__)


class WeightsAndBiases(Sink):
    """A W&B run of project `esmpi` with the run's uuid as id; offline where there is no network, or WANDB_MODE says so.

    The evaluation of theta of generation g is at step 2 g, and the update that follows it at step 2 g + 1, so that a
    resumed run neither repeats nor leaves out a step.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        import wandb

        recorded = recorded_steps(directory)  # before this start adds a file
        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not answers(wandb.Settings().base_url):
            mode = "offline"
            log.warning(
                "log.sinks: wandb: no network here, so the run is recorded offline: `wandb sync %s` on a machine with "
                "a network sends it",
                directory / "wandb" / "offline-run-*",
            )
        try:
            self._run = wandb.init(
                project="esmpi",
                id=attributes["run_uuid"],
                name=attributes["config"]["run"]["name"],
                config=attributes["config"],
                dir=str(directory),
                resume="allow",
                mode=mode,
            )
        except wandb.errors.UsageError as error:
            raise UserError(
                f"log.sinks: wandb does not start: {str(error).rstrip('.')}. Run `wandb login`, or set WANDB_API_KEY, "
                f"or WANDB_MODE=offline"
            ) from None
        self._run.define_metric("*", step_metric="generation")
        # a server tells which step is the next
        self._known = recorded if self._run.offline else set(range(self._run.step))
        self.lacks_from = first_gap({step // 2 for step in self._known if step % 2}, first)

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        row = {f"{group}/{name}": value for name, value in figures.items()} | {"generation": generation}
        self._log(row, 2 * generation + (group == "generation"))

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        row: dict[str, Any] = {"generation/fitness": wandb.Histogram(fitness.tolist())} if fitness.size else {}
        if samples:
            rows = [row_of_sample(sample) for sample in samples]
            row["generation/samples"] = wandb.Table(columns=list(rows[0]), data=[list(one.values()) for one in rows])
        if row:
            self._log(row, 2 * generation + 1)  # which is one step with the figures

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        if step not in self._known:
            self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()
