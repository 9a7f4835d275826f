"""The run file, `run.h5`: config, provenance, and a row for each generation, member and evaluation.

A commit writes the file anew beside the old one, syncs it, and renames it over: a reader, or the next start, meets
either the file without the generation or the file with it, whenever the writer dies. The file is small (about 34 bytes
a member and generation, and what is more than some MiB of members is in segments: `esmpi.store.members`), so this
costs milliseconds; only /generations, 150 bytes a generation, grows with the run (15 MB at 100,000 generations).
FORMAT.md describes the file.

What else there is, and why not: with HDF5's SWMR mode a file that is being written, or whose writer was killed, is not
opened by a plain `h5py.File(path, "r")`, and there is no commit of several data sets at once; a journal beside the
file would hide the last generations from readers that do not know of it.
"""

import io
import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esmpi.config.sections import HELD_OUT, is_suite_name
from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.files import FullError, write_whole
from esmpi.noise import NOISE_VERSION
from esmpi.store import members as member_table
from esmpi.store.members import LOG_ONLY, Segment, read_columns, write_columns
from esmpi.store.seal import image_of, put, put_attribute, read_sealed, seal
from esmpi.store.validation import check_contents
from esmpi.version import __version__

FORMAT_VERSION = 2
"""2 added segments, forks, log-only files and kinds of failed rewards to 1, which is still read, and becomes 2 at the
next commit."""

RUN_FILE = "run.h5"
"""Its name in a run directory."""

GENERATION_DTYPE = np.dtype(
    [
        ("generation", np.int64),
        ("fitness_mean", np.float64),
        ("fitness_std", np.float64),
        ("fitness_min", np.float64),
        ("fitness_max", np.float64),
        ("theta_digest", np.uint64),  # after this generation's update
        # these are rank 0's; exchange includes waiting for the slowest rank
        ("seconds_generate", np.float64),
        ("seconds_score", np.float64),
        ("seconds_perturb", np.float64),
        ("seconds_update", np.float64),
        ("seconds_exchange", np.float64),
        ("seconds_total", np.float64),
        ("tokens", np.int64),
        ("num_failed", np.int64),
        ("num_score_raised", np.int64),
        ("num_score_timed_out", np.int64),
        ("num_score_died", np.int64),
        ("unix_time", np.float64),
    ]
)

PROFILE_DTYPE = np.dtype(
    [
        ("generation", np.int64),
        ("rank", np.int32),
        ("phase", "S16"),
        ("seconds_start", np.float64),
        ("seconds_end", np.float64),
    ]
)

_JSON = ("config", "provenance", "tensors", "aliases", "forks", "segments", "suite_digests")
_EVALUATION_UNITS = {"seconds": "s", "tokens_mean": "tokens"}


class RunFile:
    """A run file, in memory and on disk.

    Attributes
    ----------
    attributes : dict
        The file's attributes as plain types; see FORMAT.md.
    generations : list of void
        Rows of GENERATION_DTYPE, one a committed generation.
    members : list of ndarray
        For each generation (N,) of MEMBER_DTYPE; after a fork N may differ between generations.
    evaluations : dict of list of dict
        By suite; a row has `generation` and the figures of `esmpi.record.evaluation.Evaluation`.
    profile : ndarray or None
        (n,) of PROFILE_DTYPE: when each rank did what in the generation that was profiled last.
    make_room : callable or None
        Called once when there is no room for the file, which is then tried once more.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]):
        self.path = path
        self.attributes = attributes
        self.generations: list[np.void] = []
        self.members: list[np.ndarray] = []
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        self.profile: np.ndarray | None = None
        self.segments: list[Segment] = []
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
    ) -> "RunFile":
        """Return a new run file without generations; nothing is written yet.

        `tensors` are the canonical names of theta, `aliases` other names of tied ones (alias -> canonical).
        """
        return cls(
            path,
            {
                "format_version": FORMAT_VERSION,
                "noise_version": NOISE_VERSION,
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
                "log_only": False,
            },
        )

    @classmethod
    def open(cls, path: Path) -> "RunFile":
        """Read a run file.

        Raises
        ------
        UserError
            If it is missing, no run file, or of a version that this esmpi does not know.
        """
        try:
            with h5py.File(io.BytesIO(read_sealed(path)), "r") as file:
                run = cls(path, _read_attributes(path, file))
                log_only = run.attributes["log_only"]
                columns = [name for name in LOG_ONLY if name in file["members"]] if log_only else None
                run.segments = [Segment(**entry) for entry in run.attributes.pop("segments")]
                for segment in run.segments:
                    run.members += member_table.read_segment(path, segment)
                tail = read_columns(file["tail" if run.segments else "members"], MEMBER_DTYPE, columns)
                run.members += member_table.rows_of(tail)
                if columns == ["coefficient"]:
                    seeds = member_table.seeds_by_config(run.attributes["config"], run.members) or ()
                    for row, by_config in zip(run.members, seeds, strict=True):
                        row["seed"] = by_config
                run.generations = list(_read_generations(file, log_only))
                for suite, group in file["evaluations"].items():
                    run.evaluations[suite] = _read_evaluations(group)
                if "profile" in file:
                    run.profile = read_columns(file["profile"], PROFILE_DTYPE, ndim=1)
                check_contents(run)
                return run
        except FileNotFoundError:
            raise UserError(f"no run file {path}: name the run's directory") from None
        # all that h5py and json raise
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read as a run file: {error}") from error

    @property
    def num_generations(self) -> int:
        """Committed generations."""
        return len(self.generations)

    @property
    def theta_digest(self) -> int:
        """Digest of theta after the last committed generation."""
        return self.digest_after(self.num_generations)

    def digest_after(self, generation: int) -> int:
        """Return the digest of theta of a generation; generation 0 is the base model."""
        if generation == 0:
            return int(self.attributes["model_digest"])
        return int(self.generations[generation - 1]["theta_digest"])

    def describe(self, generation: int) -> dict[str, Any]:
        """Return what tells theta of a generation from any other: for files that leave the run directory."""
        return {
            "run_uuid": self.attributes["run_uuid"],
            "run": self.attributes["config"]["run"]["name"],
            "generation": generation,
            "theta_digest": f"{self.digest_after(generation):016x}",
        }

    def best(self, suite: str = HELD_OUT) -> dict[str, Any] | None:
        """Return the best evaluation: highest accuracy, then highest mean reward, then earliest; None without any."""
        rows = self.evaluations.get(suite, ())
        return max(rows, key=lambda row: (row["accuracy"], row["reward_mean"], -row["generation"]), default=None)

    def cut(self, path: Path, generation: int) -> "RunFile":
        """Return a copy of the first generations, up to theta of `generation`, under a path; not yet written.

        Raises
        ------
        UserError
            If there are not so many.
        """
        self.check_generation(generation)
        copy = RunFile(path, dict(self.attributes))
        copy.generations, copy.members = self.generations[:generation], self.members[:generation]
        for suite, rows in self.evaluations.items():
            if kept := [row for row in rows if row["generation"] <= generation]:
                copy.evaluations[suite] = kept
        return copy

    def choose_generation(self, generation: int | None, best: bool) -> int:
        """Return a generation: the given one, the best evaluated one, or the last.

        Raises
        ------
        UserError
            If there is no such generation, or no evaluation to choose the best by.
        """
        if best:
            row = self.best()
            if row is None:
                raise UserError(f"--best: {self.path} has no evaluation")
            generation = int(row["generation"])
        chosen = self.num_generations if generation is None else generation
        self.check_generation(chosen)
        return chosen

    def check_generation(self, generation: int) -> None:
        """Raise UserError unless theta of a generation can be rebuilt from here."""
        if not 0 <= generation <= self.num_generations:
            raise UserError(f"generation {generation}: {self.path} has generations 0 to {self.num_generations}")

    def commit(self, row: np.void, members: np.ndarray) -> None:
        """Add a generation and make it durable.

        Raises
        ------
        FullError
            If there is no room; the file on disk is then as it was.
        OSError
            If it cannot be written for another reason; likewise.
        """
        self.begin_commit(row, members)()

    def begin_commit(self, row: np.void, members: np.ndarray) -> Callable[[], None]:
        """Add a generation, and return what makes it durable and raises as `commit` does.

        That may be called in another thread: it takes nothing from here but the file's bytes. Nothing else may be
        written meanwhile.
        """
        self.generations.append(row)
        self.members.append(members)
        return self._writing()

    def add_evaluation(self, suite: str, row: dict[str, Any]) -> None:
        """Add the result of a suite (`generation` and figures), in place of an older one, and make it durable.

        Raises
        ------
        UserError
            If no suite may have this name.
        """
        _check_suite(suite)
        rows = [other for other in self.evaluations.get(suite, []) if other["generation"] != row["generation"]]
        self.evaluations[suite] = sorted([*rows, row], key=lambda one: int(one["generation"]))
        self.write()

    def write(self) -> None:
        """Replace the file on disk by what is in memory; raises as `commit` does."""
        self._writing()()

    def _writing(self) -> Callable[[], None]:
        if not self.attributes["log_only"]:  # which is one file for itself, whatever its size
            self._freeze()
        return partial(self._write, image_of(self._fill))

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

    def _freeze(self) -> None:
        """Take members' rows out into segments until what is left is small."""
        first = self.segments[-1].end if self.segments else 0
        size = 0
        for generation in range(first, self.num_generations):
            size += self.members[generation].nbytes
            if size > member_table.SEGMENT_BYTES and generation > first:
                segment, image = member_table.freeze(first, self.members[first:generation])
                self.segments.append(segment)
                self._unwritten[self.path.parent / segment.file] = image
                first, size = generation, self.members[generation].nbytes

    def _seeds_follow_from_config(self) -> bool:
        seeds = member_table.seeds_by_config(self.attributes["config"], self.members)
        return seeds is not None and all(
            np.array_equal(by_config, row["seed"]) for by_config, row in zip(seeds, self.members, strict=True)
        )

    def _fill(self, file: h5py.File) -> None:
        log_only = self.attributes["log_only"]
        written = self.attributes | {"segments": [asdict(segment) for segment in self.segments]}
        for name, value in written.items():
            put_attribute(file.id, name, json.dumps(value) if name in _JSON else _stored(value))
        table = np.array(self.generations, GENERATION_DTYPE)
        write_columns(file.create_group("generations"), table, _LOG_COLUMNS if log_only else None)
        frozen = self.segments[-1].end if self.segments else 0
        columns: Sequence[str] | None = LOG_ONLY if log_only else None
        if log_only and self._seeds_follow_from_config():
            columns = ["coefficient"]
        member_table.write_members(file, self.segments, self.members[frozen:], columns)
        if self.profile is not None and not log_only:
            write_columns(file.create_group("profile"), self.profile)
        evaluations = file.create_group("evaluations")
        for suite, rows in self.evaluations.items():
            group = evaluations.create_group(suite)
            for name in dict.fromkeys(name for row in rows for name in row):
                dataset = put(group, name, np.array([row.get(name, math.nan) for row in rows]))
                if name in _EVALUATION_UNITS:
                    put_attribute(dataset, "unit", _EVALUATION_UNITS[name])


_LOG_COLUMNS = ("generation", "theta_digest")
"""Columns of `/generations` in a log-only file."""


def run_file_path(run: str | Path) -> Path:
    """Return the run file of a run directory; a path of a run file is itself."""
    path = Path(run)
    return path if path.is_file() else path / RUN_FILE


def samples_path(run_file: Path, suite: str, generation: int) -> Path:
    """Return the file of an evaluation's samples: one JSON object a line. Raises UserError for no name of a suite."""
    _check_suite(suite)
    return run_file.parent / "eval" / f"g{generation:06d}.{suite}.jsonl"


def _check_suite(name: str) -> None:
    if not is_suite_name(name):
        raise UserError(f"{name!r} is no name for a suite: letters, digits, _ and - only")


def _read_evaluations(group: h5py.Group) -> list[dict[str, Any]]:
    shape = group["generation"].shape
    for dataset in group.values():
        member_table.check_column(dataset, shape, 1)
        if dataset.dtype.kind not in "biuf":
            raise ValueError(f"{dataset.name} is no column of numbers")
    figures = {name: dataset[()].tolist() for name, dataset in group.items()}
    return [{name: column[i] for name, column in figures.items()} for i in range(shape[0])]


def _read_generations(file: h5py.File, log_only: bool) -> np.ndarray:
    names: Sequence[str] = _LOG_COLUMNS if log_only else GENERATION_DTYPE.names or ()
    if file.attrs["format_version"] > 1:
        return read_columns(file["generations"], GENERATION_DTYPE, names, ndim=1)
    names = [name for name in names if not name.startswith("num_score_")]
    rows = read_columns(file["generations"], GENERATION_DTYPE, names, ndim=1)
    rows["num_score_raised"] = file["generations/num_score_failures"][()]  # version 1 told no kinds apart
    return rows


def _read_attributes(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the attributes as plain types, those of an older version brought up to this one."""
    stored = dict(file.attrs)
    for name, known in (("format_version", range(1, FORMAT_VERSION + 1)), ("noise_version", [NOISE_VERSION])):
        if name not in stored:
            raise UserError(f"{path} is not a run file of esmpi: it has no attribute {name}")
        if stored[name] not in known:
            reads = " and ".join(map(str, known))
            raise UserError(f"{path} has {name} {stored[name]}; this esmpi reads {reads}")
    attributes = {
        name: json.loads(value) if name in _JSON else value.item() if isinstance(value, np.generic) else value
        for name, value in stored.items()
    }
    attributes = {"task_digest": "", "suite_digests": {}} | attributes  # an esmpi of before had none
    if attributes["format_version"] == 1:
        attributes |= {"forks": [], "segments": [], "log_only": False}
    return attributes | {"format_version": FORMAT_VERSION}


def _stored(value: Any) -> Any:
    return np.uint64(value) if isinstance(value, int) and value >= 2**31 else value
