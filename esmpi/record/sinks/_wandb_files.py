"""What W&B has recorded offline. It writes late, so a start that was killed may have left out many generations."""

import struct
from collections.abc import Iterator
from pathlib import Path

_HEAD, _BLOCK = 7, 32768
"""Bytes of a file's head, and of the blocks of LevelDB's log format, which follows it."""


def recorded_steps(directory: Path) -> set[int]:
    """Return the steps of a run that the files of its earlier starts have."""
    return {step for path in directory.glob("wandb/offline-run-*/run-*.wandb") for step in _steps(path)}


def _steps(path: Path) -> Iterator[int]:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

    for data in _records(path.read_bytes()):
        try:
            record = Record.FromString(data)
        except Exception:  # protobuf's own: half a record
            return
        if record.WhichOneof("record_type") == "history":
            yield int(record.history.step.num)


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file; one may have several parts: the first, middle ones, and the last."""
    place, begun = _HEAD, b""
    while place + 7 <= len(data):
        room = _BLOCK - place % _BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        begun = part if kind in (1, 2) else begun + part
        if kind in (1, 4) and len(part) == length:
            yield begun
