"""Sink `trackio`."""

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.record.sinks._network import answers, without_secrets
from esmpi.record.sinks.base import Sink, first_gap, row_of_sample

_PROJECT = "esmpi"


class Trackio(Sink):
    """A run of Trackio's project `esmpi`: on this machine, or on TRACKIO_SERVER_URL or TRACKIO_SPACE_ID.

    Steps are those of the sink `wandb`. On this machine, a figure that is there is not written again.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        server = os.environ.get("TRACKIO_SERVER_URL")
        is_here = not server and not os.environ.get("TRACKIO_SPACE_ID")
        if server and not answers(server):
            raise UserError(f"log.sinks: trackio: no server answers at TRACKIO_SERVER_URL={without_secrets(server)}")
        if is_here:  # without a place to write to, Trackio itself would only warn
            TRACKIO_DIR.mkdir(parents=True, exist_ok=True)
            if not os.access(TRACKIO_DIR, os.W_OK):
                raise UserError(f"log.sinks: trackio cannot write to {TRACKIO_DIR}: set TRACKIO_DIR")
        name = f"{attributes['config']['run']['name']}-{attributes['run_uuid'][:8]}"
        with redirect_stdout(io.StringIO()):  # which has a line for each of what it does
            self._run = trackio.init(
                project=_PROJECT,
                name=name,
                config=attributes["config"],
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._known: set[tuple[str, int]] = set()
        for row in SQLiteStorage.get_logs(_PROJECT, name, run_id=self._run.id) if is_here else ():
            self._known |= {(key, int(row["step"])) for key in row}
        shown = {(step - 1) // 2 for key, step in self._known if key == "generation/fitness_mean"}
        # the last one may lack its completions; what a server has is not asked for
        self.lacks_from = min(first_gap(shown, first), max(0, first - 1)) if is_here else first

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        step = 2 * generation + (group == "generation")
        new = {f"{group}/{name}": float(value) for name, value in figures.items()}
        new = {key: value for key, value in new.items() if (key, step) not in self._known}
        if new:
            self._run.log(new | {"generation": generation}, step=step)

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        import trackio

        if ("generation/fitness", 2 * generation + 1) in self._known:
            return
        row: dict[str, Any] = {"generation/fitness": trackio.Histogram(fitness)} if fitness.size else {}
        if samples:
            rows = [row_of_sample(sample) for sample in samples]
            row["generation/samples"] = trackio.Table(columns=list(rows[0]), data=[list(one.values()) for one in rows])
        if row:
            self._run.log(row, step=2 * generation + 1)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()
