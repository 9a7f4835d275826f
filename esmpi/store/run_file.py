"""The run file, `run.h5`: config, provenance, and a row for each generation, member and evaluation.

A commit writes a new file beside the old one, syncs it, and renames it over the old one. Whenever the writer dies, a
reader or the next start finds either the file without the generation or the file with it. The file is small, however
long the run is: all but the last few MiB of members and generations are in segments (`esmpi.store.members`,
`esmpi.store.generations`). So a commit costs milliseconds. docs/run-files.md describes the file, `esmpi.store.image`
makes its bytes, `esmpi.store.reader` reads it.

Two other ways were rejected. In HDF5's SWMR mode, a plain `h5py.File(path, "r")` does not open a file that is being
written or whose writer was killed, and several data sets cannot be committed at once. A journal beside the file would
hide the last generations from readers that do not know of it.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from esmpi.config.problems import MOST_SUITES, is_suite_name
from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.files import FullError, write_whole
from esmpi.model.noise_settings import NoiseSettings
from esmpi.noise import NOISE_VERSIONS
from esmpi.store import generations
from esmpi.store import members as member_table
from esmpi.store.format import FORMAT_VERSION, GENERATION_DTYPE, PROFILE_DTYPE
from esmpi.store.generations import GenerationSegment
from esmpi.store.history import History
from esmpi.store.image import image_of_run
from esmpi.store.members import Segment
from esmpi.store.reader import read_run
from esmpi.store.seal import seal
from esmpi.version import __version__

__all__ = [
    "GENERATION_DTYPE",
    "MEMBER_DTYPE",
    "PROFILE_DTYPE",
    "RUN_FILE",
    "RunFile",
    "member_samples_path",
    "run_file_path",
    "samples_path",
]

RUN_FILE = "run.h5"
"""Name of the run file in a run directory."""


class RunFile(History):
    """The history of a run, in memory and on disk.

    Attributes
    ----------
    segments : list of Segment
        The files beside it that hold the members of the first generations.
    generation_segments : list of GenerationSegment
        The files beside it that hold the rows of the first generations.
    make_room : callable or None
        Called once when there is no room for the file, which is then tried once more.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]):
        super().__init__(path, attributes)
        self.segments: list[Segment] = []
        self.generation_segments: list[GenerationSegment] = []
        self.make_room: Callable[[], None] | None = None
        self._unwritten: dict[Path, memoryview] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        config: dict[str, Any],
        model_digest: int,
        data_digest: str,
        tensors: Sequence[str],
        aliases: dict[str, str],
    ) -> Self:
        """Return a new run file without generations; nothing is written yet.

        Parameters
        ----------
        path : Path
        config : dict
            Fully resolved, of types that JSON has.
        model_digest : int
            Digest of theta of generation 0, uint64.
        data_digest : str
            Digest of the problems.
        tensors : sequence of str
            Canonical names of theta's tensors.
        aliases : dict
            Other names of tied tensors, and the canonical name of each.
        """
        return cls(
            path,
            {
                "format_version": FORMAT_VERSION,
                "noise_version": NOISE_VERSIONS[not NoiseSettings.of(config["es"]).is_default],
                "creator": f"esmpi {__version__}",
                "run_uuid": str(uuid.uuid4()),
                "config": config,
                "model_digest": model_digest,
                "data_digest": data_digest,
                "task_digest": "",
                "suite_digests": {},
                "tensors": list(tensors),
                "aliases": aliases,
                "provenance": [],
                "forks": [],
                "events": [],
                "log_only": False,
            },
        )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a run file.

        Raises
        ------
        UserError
            If it is missing, damaged, no run file, or of a version that this esmpi does not know.
        """
        run, segments, generation_segments = read_run(path, cls)
        run.segments, run.generation_segments = segments, generation_segments
        return run

    def commit(self, row: np.void, members: np.ndarray) -> None:
        """Add a generation and make it durable.

        Parameters
        ----------
        row : void
            Of GENERATION_DTYPE.
        members : (N,) ndarray
            Of MEMBER_DTYPE.

        Raises
        ------
        FullError
            If there is no room. The file on disk is unchanged.
        OSError
            If the file cannot be written for another reason. The file on disk is unchanged.
        """
        self.begin_commit(row, members)()

    def begin_commit(
        self, row: np.void, members: np.ndarray, figures: Mapping[str, float] | None = None
    ) -> Callable[[], None]:
        """Add a generation, and return the function that makes it durable.

        The function raises as `commit` does. Another thread may call it, because it needs only the file's bytes, which
        are made here. Nothing else may be written meanwhile.

        Parameters
        ----------
        row : void
            Of GENERATION_DTYPE.
        members : (N,) ndarray
            Of MEMBER_DTYPE.
        figures : mapping of str to float, optional
            Further numbers of the members' rewards.
        """
        self.generations.append(row)
        self.members.append(members)
        if figures:
            self.figures.append({"generation": self.num_generations - 1, **figures})
        return self._writing()

    def add_evaluation(self, suite: str, row: dict[str, Any]) -> None:
        """Add the result of a suite at a generation, in place of an older one, and make it durable.

        Parameters
        ----------
        suite : str
        row : dict
            `generation` and the figures.

        Raises
        ------
        UserError
            If the name is not allowed for a suite, or there are too many.
        ForbiddenError, FullError, OSError
            As `commit` does.
        """
        _check_suite(suite)
        if suite not in self.evaluations and len(self.evaluations) >= MOST_SUITES:
            raise UserError(f"{self.path} has evaluations of {MOST_SUITES} suites, and has no room for {suite}")
        rows = [other for other in self.evaluations.get(suite, []) if other["generation"] != row["generation"]]
        self.evaluations[suite] = sorted([*rows, row], key=lambda result: int(result["generation"]))
        self.write()

    def write(self) -> None:
        """Replace the file on disk by what is in memory; raise as `commit` does."""
        self._writing()()

    def _writing(self) -> Callable[[], None]:
        if not self.attributes["log_only"]:  # a log-only file is a single file, whatever its size
            self._freeze_members()
            self._freeze_generations()
        return partial(self._write, image_of_run(self, self.segments, self.generation_segments))

    def _write(self, image: memoryview) -> None:
        seal(image)
        try:
            self._write_files(image)
        except FullError:
            if self.make_room is None:
                raise
            self.make_room()
            self._write_files(image)

    def _write_files(self, image: memoryview) -> None:
        for path in list(self._unwritten):
            write_whole(path, self._unwritten[path])
            del self._unwritten[path]
        write_whole(self.path, image)

    def _freeze_members(self) -> None:
        """Move members' rows into segments until the rest is small."""
        first = self.segments[-1].end if self.segments else 0
        size = 0
        for generation in range(first, self.num_generations):
            size += self.members[generation].nbytes
            if size > member_table.SEGMENT_BYTES and generation > first:
                segment, image = member_table.freeze(first, self.members[first:generation])
                self.segments.append(segment)
                self._unwritten[self.path.parent / segment.file] = image
                first, size = generation, self.members[generation].nbytes

    def _freeze_generations(self) -> None:
        """Move rows of generations into segments until the rest is small."""
        most = generations.SEGMENT_BYTES // GENERATION_DTYPE.itemsize
        first = self.generation_segments[-1].end if self.generation_segments else 0
        num_figures = sum(segment.num_figures for segment in self.generation_segments)
        while self.num_generations - first > most:
            end = first + most
            figures = [row for row in self.figures[num_figures : num_figures + most] if row["generation"] < end]
            segment, image = generations.freeze(first, self.generations[first:end], figures)
            self.generation_segments.append(segment)
            self._unwritten[self.path.parent / segment.file] = image
            first, num_figures = end, num_figures + len(figures)


def run_file_path(run: str | Path) -> Path:
    """Return the run file of a run directory; the path of a run file is returned as it is."""
    path = Path(run)
    return path if path.is_file() else path / RUN_FILE


def samples_path(run_file: Path, suite: str, generation: int) -> Path:
    """Return the file of an evaluation's samples, which has one JSON object a line.

    Raises
    ------
    UserError
        If the name is not allowed for a suite.
    """
    _check_suite(suite)
    return run_file.parent / "eval" / f"g{generation:06d}.{suite}.jsonl"


def member_samples_path(run_file: Path, generation: int) -> Path:
    """Return the file of the completions that are kept of a generation's members, which has one JSON object a line."""
    return run_file.parent / "samples" / f"g{generation:06d}.jsonl"


def _check_suite(name: str) -> None:
    if not is_suite_name(name):
        raise UserError(f"{name!r} cannot be the name of a suite: letters, digits, _ and - only")
