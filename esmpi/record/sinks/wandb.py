"""Sink `wandb`: Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmpi.record.sinks.base import Sink


class WeightsAndBiases(Sink):
    """A W&B run of project `esmpi` with the run's uuid as id; WANDB_MODE=offline on nodes without internet."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        import wandb

        self._run = wandb.init(
            project="esmpi",
            id=attributes["run_uuid"],
            name=attributes["config"]["run"]["name"],
            config=attributes["config"],
            dir=str(directory),
            resume="allow",
        )

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        self._run.log({f"{group}/{name}": value for name, value in figures.items()} | {"generation": generation})

    def close(self) -> None:
        self._run.finish()
