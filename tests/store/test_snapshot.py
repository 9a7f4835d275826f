"""Snapshot files: what goes in comes out, by esmpi and by plain h5py, and no damage goes unseen."""

import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from esmpi.model.base_model import matrix_shape
from esmpi.model.snapshot import Snapshot, SnapshotError
from esmpi.store import layout
from esmpi.store import snapshot_writer as snapshot
from esmpi.store.snapshot_writer import check_seal, write_snapshot

ORIGIN: dict[str, Any] = {
    "generation": 7,
    "theta_digest": 2**64 - 5,
    "run_uuid": "12345678",
    "config": {"run": {"name": "ünïcode"}},
}


def theta() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "model.embed_tokens.weight": (700, 48),
        "model.norm.weight": (48,),
        "a.conv.weight": (5, 3, 4),
        "scalar": (),
        "one": (1,),
        "wide": (3, 5000),
        "tall": (5001, 2),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(params=["as it is", "many chunks and blocks"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param != "as it is":
        monkeypatch.setattr(layout, "_CHUNK_BYTES", 4096)
        monkeypatch.setattr(snapshot, "_BLOCK_BYTES", 10_000)
    return tmp_path / "snapshots" / "g000007.h5"


def test_what_was_written_is_read(path: Path) -> None:
    values = theta()
    size = write_snapshot(path, values, ORIGIN)
    assert size == path.stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    check_seal(path)
    with Snapshot(path) as stored:
        assert (stored.generation, stored.theta_digest) == (7, 2**64 - 5)
        for name, tensor in values.items():
            rows, cols = matrix_shape(tuple(tensor.shape))
            matrix = tensor.reshape(rows, cols)
            assert torch.equal(stored.read(name, (0, rows), (0, cols)), matrix), name
            part = stored.read(name, (rows // 3, rows), (cols // 4, cols - cols // 5))
            assert torch.equal(part, matrix[rows // 3 :, cols // 4 : cols - cols // 5]), name
            assert part.dtype == torch.float32
        with pytest.raises(SnapshotError, match="other cannot be read"):
            stored.read("other", (0, 1), (0, 1))


def test_plain_h5py_reads_the_documented_schema(path: Path) -> None:
    write_snapshot(path, theta(), ORIGIN)
    with h5py.File(path, "r") as file:
        assert file.attrs["snapshot_version"] == 1
        assert file.attrs["theta_digest"] == 2**64 - 5
        assert file.attrs["run_uuid"] == "12345678"
        for name, tensor in theta().items():
            stored = file[f"theta/{name}"]
            assert stored.dtype == np.dtype("<f4")
            assert (stored.chunks is not None) == (tensor.ndim > 0)
            np.testing.assert_array_equal(stored[()], tensor.numpy())


def test_damage_at_any_byte_is_seen(path: Path) -> None:
    write_snapshot(path, theta(), ORIGIN)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=r"is damaged|is torn"):
            check_seal(path)
        found += 1
    assert found == 100
    path.write_bytes(whole)
    check_seal(path)


def test_torn_and_foreign_files_are_seen(path: Path) -> None:
    write_snapshot(path, theta(), ORIGIN)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    lengths = [0, 1, 100, len(whole) - 1, *rng.integers(len(whole), size=30).tolist()]
    for content in (*(whole[:length] for length in lengths), whole + b"\0", b"\0" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(SnapshotError):
            check_seal(path)
    path.unlink()
    with pytest.raises(SnapshotError, match="No such file"):
        check_seal(path)
    with pytest.raises(SnapshotError, match="no snapshot"):
        Snapshot(path)


def test_another_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "SNAPSHOT_VERSION", 2)
        write_snapshot(path, theta(), ORIGIN)
    with pytest.raises(SnapshotError, match="has snapshot_version 2; this esmpi reads 1"):
        Snapshot(path)


@contextmanager
def little_room(size: int) -> Iterator[None]:
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 5000, 150_000])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(path: Path, size: int) -> None:
    write_snapshot(path, theta(), ORIGIN)
    before = path.read_bytes()
    assert len(before) > 150_000
    with little_room(size), pytest.raises(OSError) as caught:  # noqa: PT011 (the number is checked)
        write_snapshot(path, {name: 2 * tensor for name, tensor in theta().items()}, ORIGIN)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_writing_needs_no_second_copy_of_theta(tmp_path: Path) -> None:
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from esmpi.store.snapshot_writer import check_seal, write_snapshot\n"
        "small = {'a': torch.zeros(1)}\n"
        "origin = dict(generation=1, theta_digest=1, run_uuid='u', config={})\n"
        "path = Path(sys.argv[1])\n"
        "write_snapshot(path, small, origin)\n"
        "theta = {f'{i}.weight': torch.ones(2048, 8192) for i in range(8)}\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "write_snapshot(path, theta, origin)\n"
        "written = peak()\n"
        "check_seal(path)\n"
        "print(written - before, peak() - written, sum(t.nbytes for t in theta.values()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.h5")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    writing, checking, size = map(int, done.stdout.split())
    assert size == 2**29
    assert writing < size / 8
    assert checking < size / 4
