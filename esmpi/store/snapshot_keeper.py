"""The snapshots of a run: written beside the loop, the last ones and the best one kept, found again at the start."""

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

from esmpi.files import replacing
from esmpi.model.snapshot import Snapshot, SnapshotError
from esmpi.store.run_file import RUN_FILE, RunFile
from esmpi.store.snapshot_writer import check_seal, write_snapshot

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FOLDER = "snapshots"
_NAME = re.compile(r"(best-)?g(\d{6,})\.h5")


class SnapshotKeeper:
    """Writes snapshots of a run in a thread, one at a time. One that fails is a warning: the log is enough.

    Parameters
    ----------
    run : RunFile
    keep : int
        How many of the last ones stay, beside the best one.
    """

    def __init__(self, run: RunFile, keep: int):
        self._run = run
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "esmpi-snapshot")
        self._pending: Future[None] | None = None
        self._refused: set[Path] = set()
        # the snapshot under way needs room for theta twice: once it is done, or has failed, some is free again
        run.make_room = self.wait

    def save(
        self, generation: int, theta: "Iterable[tuple[str, torch.Tensor]]", last: bool = False, best: bool = False
    ) -> None:
        """Copy theta and write it in the background, as one of the last, as the best, or as both.

        What is there already is not written again. Waits for the snapshot before, should it still be under way.
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
        """Yield the run's snapshots as `good_snapshots` does; those that are refused here will be replaced."""
        return good_snapshots(self._run, self._run.num_generations, self._refused)

    def tidy(self) -> None:
        """Delete what is not to be kept: once the latest one is known to be good, and so at the start, too."""
        try:
            self._prune()
        except OSError as error:
            log.warning("old snapshots cannot be deleted: %s", error)

    def wait(self) -> None:
        """Wait for the snapshot that is under way. For any thread: a commit for which there is no room waits, too."""
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Finish what is under way."""
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
        except Exception as error:  # whatever it is, training is not to end by it
            generation = origin["generation"]
            log.warning("the snapshot of generation %s failed (%s); the run goes on without it", generation, error)
            return
        seconds = time.perf_counter() - started
        log.info("snapshot %s: %.1f MB in %.1f s, beside the run", paths[0], size / 1e6, seconds)

    def _prune(self) -> None:
        found = list(snapshots_beside(self._run.path))
        last = [path for path, _, best in found if not best and path not in self._refused]
        best = [path for path, _, best in found if best and path not in self._refused]
        for path, _, _ in found:
            if path not in last[: self._keep] and path not in best[:1]:
                path.unlink()


def snapshot_path(run_file: Path, generation: int, best: bool = False) -> Path:
    """Return where a snapshot is: one of the last, or the best."""
    return run_file.parent / FOLDER / f"{'best-' if best else ''}g{generation:06d}.h5"


def snapshots_beside(run_file: Path) -> Iterator[tuple[Path, int, bool]]:
    """Yield each snapshot of a run directory with its generation and whether it is a best one, the latest first."""
    found = []
    with suppress(OSError):
        for path in (run_file.parent / FOLDER).iterdir():
            if match := _NAME.fullmatch(path.name):
                found.append((path, int(match[2]), match[1] is not None))
    yield from sorted(found, key=lambda entry: (-entry[1], entry[2]))


def good_snapshots(run: RunFile, generation: int, refused: set[Path] | None = None) -> Iterator[tuple[int, Path, int]]:
    """Yield the snapshots up to a generation, the latest first: generation, path, digest of theta.

    Each is checked to the last byte, and there is a warning of those that are not good; `refused` takes their paths.
    Those of the run that this one was forked from count as well. Later ones than the run's last generation (it was
    restored from a backup, or begun anew) are refused, too.
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
    """Return the generation of a snapshot, all of whose bytes were checked, and which is theta of this run.

    Raises
    ------
    SnapshotError
        If it is torn, damaged, or of another run.
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
