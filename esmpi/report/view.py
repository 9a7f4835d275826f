"""A run from Python: its figures as pandas frames, its samples, its weights of any generation, its picture."""

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.errors import UserError, nearest
from esmpi.files import read_json_lines
from esmpi.store.run_file import RunFile, run_file_path, samples_path
from esmpi.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from esmpi.report.figure import Figure
    from esmpi.report.picture import Picture


def open_run(path: str | Path) -> "Run":
    """Open a run for reading, also while it is running; nothing is locked or written.

    Parameters
    ----------
    path : path
        A run directory, such as runs/quickstart, or a log-only file.

    Raises
    ------
    UserError
        If there is no run, or its file is damaged.
    """
    return Run(RunFile.open(run_file_path(path)))


class Run:
    """A run, as it was when it was opened: `open_run` gives one.

    Frames need pandas, `plot` needs matplotlib, and both come with `pip install 'esmpi[report]'`.
    """

    def __init__(self, file: RunFile):
        self._file = file

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<esmpi.Run {self.directory}: {self.num_generations} of "
            f"{counted(config['es']['generations'], 'generation')}, theta {self._file.theta_digest:016x}>"
        )

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._file.path.parent

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the last start, by section and key."""
        config: dict[str, Any] = self._file.attributes["config"]
        return config

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes of the run file: provenance, digests and so on; see `docs/run-files.md`."""
        return self._file.attributes

    @property
    def num_generations(self) -> int:
        """How many generations are committed."""
        return self._file.num_generations

    @property
    def finished(self) -> bool:
        """Whether the run has all its generations."""
        return self.num_generations >= self.config["es"]["generations"]

    @cached_property
    def generations(self) -> "pd.DataFrame":
        """A row for each generation; the columns are those of /generations in `docs/run-files.md`.

        Of a log-only file there are only the columns that it stores.
        """
        from esmpi.store.format import GENERATION_DTYPE, LOG_ONLY_GENERATIONS

        columns = LOG_ONLY_GENERATIONS if self._file.attributes["log_only"] else None
        return _frame(np.array(self._file.generations, GENERATION_DTYPE), columns)

    @cached_property
    def members(self) -> "pd.DataFrame":
        """A row for each member of each generation: `generation`, `member`, and the columns of /members.

        Of a log-only file there are only `seed` and `coefficient`.
        """
        from esmpi.es.member_columns import MEMBER_DTYPE
        from esmpi.store.members import LOG_ONLY

        rows = self._file.members
        columns = LOG_ONLY if self._file.attributes["log_only"] else None
        frame = _frame(np.concatenate([np.empty(0, MEMBER_DTYPE), *rows]), columns)
        sizes = [len(row) for row in rows]
        frame.insert(0, "generation", np.repeat(np.arange(len(rows)), sizes))
        frame.insert(1, "member", np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)]))
        return frame

    @cached_property
    def member_figures(self) -> "pd.DataFrame":
        """A row for each generation whose rewards had further numbers; the columns are those of /figures."""
        return _pandas().DataFrame(self._file.figures or {"generation": []})

    @cached_property
    def evaluations(self) -> "pd.DataFrame":
        """A row for each evaluation: `suite`, `generation` (0 is the base model), and its figures."""
        rows = [{"suite": suite} | row for suite, rows in self._file.evaluations.items() for row in rows]
        return _pandas().DataFrame(rows or {"suite": [], "generation": []})

    def samples(self, suite: str = HELD_OUT, generation: int | None = None) -> "pd.DataFrame":
        """Return every completion of an evaluation: `example`, `prompt`, `completion`, `reward`, `correct` and so on.

        Parameters
        ----------
        suite : str
        generation : int, optional
            Default: the last one at which the suite was evaluated.

        Raises
        ------
        UserError
            If there was no such evaluation, or its file is missing or damaged.
        """
        rows = self._file.evaluations.get(suite)
        if not rows:
            raise UserError(f"no evaluation of {suite!r} in {self._file.path}{nearest(suite, self._file.evaluations)}")
        known = sorted(int(row["generation"]) for row in rows)
        chosen = known[-1] if generation is None else generation
        if chosen not in known:
            raise UserError(f"{suite} was not evaluated at generation {chosen}, but at {', '.join(map(str, known))}")
        path = samples_path(self._file.path, suite, chosen)
        try:
            return _pandas().DataFrame(list(read_json_lines(path, inside=self.directory)))
        except (OSError, ValueError) as error:
            raise UserError(f"the samples in {path} cannot be read: {error}") from error

    def theta(
        self, generation: int | None = None, *, best: bool = False, model: str | None = None
    ) -> "dict[str, torch.Tensor]":
        """Return theta of a generation, rebuilt from the log and checked against its digest.

        Parameters
        ----------
        generation : int, optional
            0 is the base model; default: the last one.
        best : bool
            Take the generation with the highest held-out accuracy instead.
        model : str, optional
            Where the base model is now, if not where the config says.

        Returns
        -------
        dict of str to Tensor
            By canonical name, float32, in the canonical shape, on the CPU.

        Raises
        ------
        UserError
            If there is no such generation, the base model is missing, or the result has another digest.
        """
        import os

        from esmpi.store.replay import base_model, replay

        chosen = self._file.choose_generation(generation, best)
        base = base_model(self._file, model)
        weights = replay(self._file, base, chosen, len(os.sched_getaffinity(0)), from_base=False)
        return {view.name: tensor.view(view.shape) for view, tensor in weights.theta()}

    def plot(self, name: str | None = None) -> "Picture":
        """Return a figure of `esmpi report`; a notebook shows it.

        Parameters
        ----------
        name : str, optional
            Which figure: see `figures`. Default: fitness and held-out accuracy side by side.

        Raises
        ------
        UserError
            If there is no such figure, or Matplotlib is not installed.
        """
        from esmpi.report import plot
        from esmpi.report.draw import draw

        if name is None:
            return plot.draw(self._file)
        if name not in self.figures:
            raise UserError(f"no figure {name!r} of {self._file.path}{nearest(name, self.figures)}")
        return draw([self._figures[name]])

    @property
    def figures(self) -> list[str]:
        """Names of the figures that the run has data for."""
        return list(self._figures)

    @cached_property
    def _figures(self) -> "dict[str, Figure]":
        from esmpi.report.of_run import figures_of

        return {figure.name: figure for figure in figures_of(self._file)}

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the outcome of the run as a small table."""
        from esmpi.report.outcome import outcome_of
        from esmpi.report.tiles import tiles_of

        left = " style='text-align:left'"
        rows = "".join(
            f"<tr><th{left}>{escape(tile.label)}</th><td{left}>{escape(tile.value)}</td>"
            f"<td{left}>{escape(tile.more)}</td></tr>"
            for tile in tiles_of(self._file, outcome_of(self._file))
        )
        return f"<table><caption>{escape(str(self.directory))}</caption>{rows}</table>"


def _frame(table: np.ndarray, columns: Sequence[str] | None) -> "pd.DataFrame":
    return _pandas().DataFrame({name: table[name] for name in columns or table.dtype.names or ()})


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError("frames need pandas: pip install 'esmpi[report]'") from error
    return pandas
