"""The run file, `run.h5`: config, provenance, and a row for each generation, member and evaluation.

A commit writes the whole file anew beside the old one and renames it over: a reader, or the next start, meets
either the file without the generation or the file with it, whenever the writer dies. The file is small (about
50 bytes a member and generation), so this costs milliseconds.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import esmpi
from esmpi.errors import UserError
from esmpi.noise import NOISE_VERSION
from esmpi.store.files import replacing

FORMAT_VERSION = 1

GENERATION_DTYPE = np.dtype(
    [
        ("generation", np.int64),
        ("fitness_mean", np.float64),
        ("fitness_std", np.float64),
        ("fitness_min", np.float64),
        ("fitness_max", np.float64),
        ("theta_digest", np.uint64),  # after this generation's update
        (
            "seconds_generate",
            np.float64,
        ),  # these are rank 0's; exchange includes waiting for the slowest rank
        ("seconds_score", np.float64),
        ("seconds_perturb", np.float64),
        ("seconds_update", np.float64),
        ("seconds_exchange", np.float64),
        ("seconds_total", np.float64),
        ("tokens", np.int64),
        ("num_failed", np.int64),
        ("num_score_failures", np.int64),
        ("unix_time", np.float64),
    ]
)

MEMBER_DTYPE = np.dtype(
    [
        ("seed", np.uint64),
        ("sign", np.int8),
        ("status", np.uint8),
        ("fitness", np.float64),
        ("coefficient", np.float32),
        ("rank", np.int32),
        ("seconds", np.float32),
        ("tokens", np.int32),
    ]
)

_JSON = ("config", "provenance", "tensors", "aliases")
_EVALUATION_UNITS = {"seconds": "s", "tokens_mean": "tokens"}


# HDF5 lets a program keep bytes of its own before the data. There stands the checksum of the rest: the library
# itself may loop for ever or crash on a damaged file.
_USERBLOCK = 512
_SEAL = b"esmpi run file, HDF5 from byte 512 on, sha256 of that: "

# HDF5 before 1.8 keeps attributes under 64 KiB, which a provenance of many starts would outgrow.
_LIBVER = ("v108", "v110")


class RunFile:
    """A run file, in memory and on disk.

    Attributes
    ----------
    attributes : dict
        The file's attributes; `config` and `provenance` as plain types.
    generations : list of void
        Rows of GENERATION_DTYPE, one a committed generation.
    members : list of ndarray
        For each generation (N,) of MEMBER_DTYPE.
    evaluations : dict of list of dict
        By suite; a row has `generation` and the figures of `esmpi.evaluate.Evaluation`.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]):
        self.path = path
        self.attributes = attributes
        self.generations: list[np.void] = []
        self.members: list[np.ndarray] = []
        self.evaluations: dict[str, list[dict[str, Any]]] = {}

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
                "creator": f"esmpi {esmpi.__version__}",
                "run_uuid": str(uuid.uuid4()),
                "config": config,
                "model_digest": model_digest,
                "data_digest": data_digest,
                "tensors": list(tensors),
                "aliases": aliases,
                "provenance": [],
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
            with h5py.File(io.BytesIO(_checked(path)), "r") as file:
                attributes = dict(file.attrs)
                for name, known in (("format_version", FORMAT_VERSION), ("noise_version", NOISE_VERSION)):
                    if name not in attributes:
                        raise UserError(f"{path} is not a run file of esmpi: it has no attribute {name}")
                    if attributes[name] != known:
                        raise UserError(f"{path} has {name} {attributes[name]}; this esmpi reads {known}")
                run = cls(path, {name: _plain(value) for name, value in attributes.items()})
                run.attributes |= {name: json.loads(attributes[name]) for name in _JSON}
                run.generations = list(_read_columns(file["generations"], GENERATION_DTYPE))
                run.members = list(_read_columns(file["members"], MEMBER_DTYPE))
                for suite, group in file["evaluations"].items():
                    columns = {name: group[name][()].tolist() for name in group}
                    count = len(columns["generation"])
                    run.evaluations[suite] = [{n: column[i] for n, column in columns.items()} for i in range(count)]
                _check_contents(run)
                return run
        except FileNotFoundError:
            raise UserError(f"no run file {path}: name the run's directory") from None
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # all that h5py and json raise
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

    def commit(self, row: np.void, members: np.ndarray) -> None:
        """Add a generation and make it durable.

        Raises
        ------
        OSError
            If it cannot be written (disk full, ...); the file on disk is then as it was.
        """
        self.generations.append(row)
        self.members.append(members)
        self.write()

    def add_evaluation(self, suite: str, row: dict[str, Any]) -> None:
        """Add the result of a suite (`generation` and figures, the same for all rows) and make it durable."""
        self.evaluations.setdefault(suite, []).append(row)
        self.write()

    def write(self) -> None:
        """Replace the file on disk by what is in memory."""
        # Made in memory: HDF5 itself does not survive a full disk, it crashes the process on closing the file.
        image = io.BytesIO()
        with h5py.File(image, "w", libver=_LIBVER, userblock_size=_USERBLOCK) as file:
            for name, value in self.attributes.items():
                file.attrs[name] = json.dumps(value) if name in _JSON else _stored(value)
            _write_columns(file.create_group("generations"), np.array(self.generations, GENERATION_DTYPE))
            num_members = len(self.members[0]) if self.members else 0
            members = np.array(self.members, MEMBER_DTYPE).reshape(self.num_generations, num_members)
            _write_columns(file.create_group("members"), members)
            evaluations = file.create_group("evaluations")
            for suite, rows in self.evaluations.items():
                group = evaluations.create_group(suite)
                for name in rows[0]:
                    dataset = group.create_dataset(name, data=np.array([row[name] for row in rows]))
                    if name in _EVALUATION_UNITS:
                        dataset.attrs["unit"] = _EVALUATION_UNITS[name]
        with replacing(self.path) as temporary:
            temporary.write_bytes(_sealed(image.getbuffer()))


def run_file_path(run: str | Path) -> Path:
    """Return the run file of a run directory; a path of a run file is itself."""
    path = Path(run)
    return path if path.is_file() else path / "run.h5"


def samples_path(run_file: Path, suite: str, generation: int) -> Path:
    """Return the file of an evaluation's samples: one JSON object a line."""
    return run_file.parent / "eval" / f"g{generation:06d}.{suite}.jsonl"


def _check_contents(run: RunFile) -> None:
    """Raise ValueError if the parts of a run file, each well formed, do not belong together."""
    wanted = {"config": dict, "provenance": list, "tensors": list, "aliases": dict, "model_digest": int}
    for name, kind in wanted.items():
        if not isinstance(run.attributes[name], kind):
            raise ValueError(f"attribute {name} is no {kind.__name__}")
    if len(run.members) != run.num_generations:
        raise ValueError(f"{len(run.members)} rows of members for {run.num_generations} generations")
    for rows in run.evaluations.values():
        for row in rows:
            if not {"generation", "accuracy", "reward_mean"} <= row.keys():
                raise ValueError("an evaluation lacks a column")


def _sealed(image: memoryview) -> bytes:
    """Return the file's bytes with the checksum in front."""
    seal = _SEAL + hashlib.sha256(image[_USERBLOCK:]).hexdigest().encode() + b"\n"
    return seal.ljust(_USERBLOCK, b"\0") + image[_USERBLOCK:]


def _checked(path: Path) -> bytes:
    """Return a run file's bytes; UserError if they are not what was written."""
    data = path.read_bytes()
    if not data.startswith(_SEAL):
        raise UserError(f"{path} is not a run file of esmpi, or its head is damaged")
    if _sealed(memoryview(data)) != data:
        raise UserError(f"{path} is damaged: its checksum is wrong. Take it from a backup")
    return data


def _write_columns(group: h5py.Group, table: np.ndarray) -> None:
    for name in table.dtype.names or ():
        dataset = group.create_dataset(name, data=np.ascontiguousarray(table[name]))
        if name.startswith("seconds") or name == "unix_time":
            dataset.attrs["unit"] = "s"
        elif name == "tokens":
            dataset.attrs["unit"] = "tokens"


def _read_columns(group: h5py.Group, dtype: np.dtype) -> np.ndarray:
    names: Sequence[str] = dtype.names or ()
    table = np.empty(group[names[0]].shape, dtype)
    for name in names:
        table[name] = group[name][()]
    return table


def _stored(value: Any) -> Any:
    return np.uint64(value) if isinstance(value, int) and value >= 2**31 else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
