"""Sink `wandb`: Weights & Biases."""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from esmpi.errors import UserError
from esmpi.record.sinks.base import Sink

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0


class WeightsAndBiases(Sink):
    """A W&B run of project `esmpi` with the run's uuid as id; offline where there is no network, or WANDB_MODE says so.

    The evaluation of theta of generation g is at step 2 g, and the update that follows it at step 2 g + 1, so that a
    resumed run neither repeats nor leaves out a step.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not _answers(wandb.Settings().base_url):
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

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        row = {f"{group}/{name}": value for name, value in figures.items()} | {"generation": generation}
        self._run.log(row, step=2 * generation + (group == "generation"))

    def close(self) -> None:
        self._run.finish()


def _answers(url: str) -> bool:
    """Return whether a server can be reached."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname or "", port), _PATIENCE_S).close()
    except OSError:
        return False
    return True
