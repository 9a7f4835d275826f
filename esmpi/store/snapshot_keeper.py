"""The snapshots of a run: written in a thread, pruned to the last ones and the best one, and found at the start."""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.files import check_held, replacing
from esmpi.model.snapshot import Snapshot, SnapshotError
from esmpi.store.run_file import RUN_FILE, RunFile
from esmpi.store.snapshot_writer import check_seal, write_snapshot

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FOLDER = "snapshots"
_NAME = re.compile(r"(best-)?g(\d{6,})\.h5")


class SnapshotKeeper:
    """Writes snapshots of a run in a thread, one at a time. A failure is only a warning, because the log is enough.

    Parameters
    ----------
    run : RunFile
    keep : int
        How many of the last ones are kept, beside the best one.
    """

    def __init__(self, run: RunFile, keep: int):
        self._run = run
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "esmpi-snapshot")
        self._pending: Future[None] | None = None
        self._refused: set[Path] = set()
        # A snapshot that is being written needs room for theta twice. When it is done or has failed, some room is free.
        run.make_room = self.wait

    def save(
        self, generation: int, theta: "Iterable[tuple[str, torch.Tensor]]", last: bool = False, best: bool = False
    ) -> None:
        """Copy theta and write it in the background.

        Waits for the previous snapshot if it is still being written.

        Parameters
        ----------
        generation : int
        theta : iterable of (canonical name, tensor)
        last : bool
            Whether to keep it as one of the last ones.
        best : bool
            Whether to keep it as the best one. A snapshot that exists already is not written again.
        """
        paths = [
            path
            for path, wanted in (
                (snapshot_path(self._run.path, generation), last),
                (snapshot_path(self._run.path, generation, best=True), best),
            )
            if wanted and (not path.exists() or path in self._refused)
        ]
        if not paths:
            return
        started = time.perf_counter()
        self.wait()
        origin = {
            "generation": generation,
            "theta_digest": self._run.digest_after(generation),
            "run_uuid": self._run.attributes["run_uuid"],
            "config": self._run.attributes["config"],
        }
        try:
            copy = {name: tensor.clone() for name, tensor in theta}
        except (MemoryError, RuntimeError) as error:
            log.warning("no snapshot of generation %d: theta cannot be copied: %s", generation, error)
            return
        log.debug("snapshot of generation %d held the loop for %.3f s", generation, time.perf_counter() - started)
        self._pending = self._thread.submit(self._write, paths, copy, origin)

    def good(self) -> Iterator[tuple[int, Path, int]]:
        """Yield the run's snapshots as `good_snapshots` does; those that it refuses will be replaced."""
        return good_snapshots(self._run, self._run.num_generations, self._refused)

    def tidy(self) -> None:
        """Delete the snapshots that are not to be kept; to be called once the latest one is known to be good."""
        try:
            self._prune()
        except OSError as error:
            log.warning("old snapshots cannot be deleted: %s", error)

    def wait(self) -> None:
        """Wait for the snapshot that is being written. Any thread may: a commit that has no room waits, too."""
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Wait for the snapshot that is being written, and end the thread."""
        self.wait()
        self._thread.shutdown()

    def _write(self, paths: Sequence[Path], theta: "dict[str, torch.Tensor]", origin: dict[str, object]) -> None:
        started = time.perf_counter()
        try:
            size = write_snapshot(paths[0], theta, origin)
            for path in paths[1:]:
                _duplicate(paths[0], path)
            self._refused -= set(paths)
            self._prune()
        except Exception as error:  # whatever it is, training continues
            generation = origin["generation"]
            log.warning("the snapshot of generation %s failed (%s); the run continues without it", generation, error)
            return
        seconds = time.perf_counter() - started
        log.info("snapshot %s: %.1f MB in %.1f s, beside the run", paths[0], size / 1e6, seconds)

    def _prune(self) -> None:
        found = list(snapshots_beside(self._run.path))
        last = [path for path, _, best in found if not best and path not in self._refused]
        best = [path for path, _, best in found if best and path not in self._refused]
        for path, _, _ in found:
            if path not in last[: self._keep] and path not in best[:1]:
                check_held(path)
                path.unlink()


def snapshot_path(run_file: Path, generation: int, best: bool = False) -> Path:
    """Return the path of a snapshot: one of the last ones, or the best one."""
    return run_file.parent / FOLDER / f"{'best-' if best else ''}g{generation:06d}.h5"


def snapshots_beside(run_file: Path) -> Iterator[tuple[Path, int, bool]]:
    """Yield each snapshot of a run directory, the latest first: path, generation, whether it is a best one."""
    found = []
    with suppress(OSError):
        for path in (run_file.parent / FOLDER).iterdir():
            if match := _NAME.fullmatch(path.name):
                found.append((path, int(match[2]), match[1] is not None))
    yield from sorted(found, key=lambda entry: (-entry[1], entry[2]))


def good_snapshots(run: RunFile, generation: int, refused: set[Path] | None = None) -> Iterator[tuple[int, Path, int]]:
    """Yield the good snapshots up to a generation, the latest first: generation, path, digest of theta.

    Each is checked to the last byte, and one that is not good gets a warning. The snapshots of the run that this one
    was forked from count as well. Snapshots later than the run's last generation are not good: the run file was then
    restored from a backup, or the run was started again.

    Parameters
    ----------
    run : RunFile
    generation : int
    refused : set of Path, optional
        Takes the paths of snapshots that are not good.
    """
    found = list(snapshots_beside(run.path)) if run.path.name == RUN_FILE else []
    if run.attributes["forks"]:
        parent = run.attributes["forks"][-1]
        beside = snapshots_beside(Path(parent["path"])) if Path(parent["path"]).name == RUN_FILE else ()
        found += [entry for entry in beside if entry[1] <= parent["generation"]]
    for path, of, _ in sorted(found, key=lambda entry: -entry[1]):
        if of > generation:
            if refused is not None and of > run.num_generations:
                log.warning("snapshot %s: %s has no such generation; it is not used", path, run.path)
                refused.add(path)
            continue
        try:
            generation_inside = check_snapshot(path, run)
        except SnapshotError as error:
            log.warning("%s; it is not used", error)
            if refused is not None:
                refused.add(path)
            continue
        yield generation_inside, path, run.digest_after(generation_inside)


def check_snapshot(path: Path, run: RunFile) -> int:
    """Check all bytes of a snapshot, and that it is theta of this run; return its generation.

    Raises
    ------
    SnapshotError
        If the file is torn, damaged, or of another run.
    """
    check_seal(path)
    with Snapshot(path) as snapshot:
        generation, digest = snapshot.generation, snapshot.theta_digest
    if not 0 <= generation <= run.num_generations or digest != run.digest_after(generation):
        raise SnapshotError(f"snapshot {path} is not theta of generation {generation} of {run.path}")
    return generation


def _duplicate(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # not every file system has hard links
            shutil.copyfile(source, temporary)
