"""Rebuild theta of any generation from the base model and the run file, bit for bit. Needs no GPU, MPI or engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, matrix_shape
from esmpi.model.find import fetch_model
from esmpi.model.snapshot import Snapshot, SnapshotError, opened
from esmpi.store.history import steps_after
from esmpi.store.run_file import RunFile
from esmpi.store.snapshot_keeper import good_snapshots
from esmpi.weights.host import Weights
from esmpi.weights.views import View

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class ReplayError(UserError):
    """The theta that was rebuilt is not the one that the run had."""


def replay(
    run: RunFile,
    base: BaseModel,
    generation: int,
    num_threads: int,
    *,
    from_base: bool = True,
    check: Callable[[int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Rebuild theta of a generation, and check it against the digest in the run file.

    Parameters
    ----------
    run : RunFile
    base : BaseModel
        The base model of the run.
    generation : int
        0 is the base model; at most `run.num_generations`.
    num_threads : int
    from_base : bool
        Whether to start from the base model even if there is a good snapshot of a later generation.
    check : callable, optional
        If given, the digest is compared after every generation, not only the last one, and this is called with the
        number of each generation that is right.
    progress : callable, optional
        Called after every update with how many are done, and how many there are to do.

    Raises
    ------
    ReplayError
        If the base model or a result does not have the recorded digest.
    UserError
        If the run has no such generation.
    """
    run.check_generation(generation)
    weights = Weights(list(_views(run, base)), partial(_read, base), num_threads)
    _compare(run, weights, 0, f"{base.folder} is not the base model of this run")
    steps = run.steps_to(generation)
    first = 0 if from_base else _load_snapshot(run, weights, base, steps)
    settings = noise = None
    ahead = steps_after(steps, first)
    for done, i in enumerate(ahead, 1):
        if noise is None or run.noise(i) != settings:  # it may change where a run was forked
            settings = run.noise(i)
            noise = settings.noise(base)
        weights.update(run.members[i]["seed"], run.members[i]["coefficient"], noise)
        if (shrink := float(run.generations[i]["shrink"])) != 1:
            weights.shrink(partial(_read, base), shrink, noise)
        if check is not None or i + 1 == generation:
            _compare(run, weights, i + 1, f"the log does not lead to theta of generation {i + 1}")
        if check is not None:
            check(i + 1)
        if progress is not None:
            progress(done, len(ahead))
    return weights


def _load_snapshot(run: RunFile, weights: Weights, base: BaseModel, steps: Sequence[int]) -> int:
    """Replace theta by the latest good snapshot on a path; return the snapshot's generation, 0 for none."""
    for found, path, digest in good_snapshots(run, steps[-1] + 1 if steps else 0):
        if found - 1 not in steps:
            continue
        try:
            with opened(path, base) as source:
                weights.load(partial(_read, source))
            if weights.digest() == digest:
                return found
            log.warning("snapshot %s does not hold theta of generation %d; it is not used", path, found)
        except SnapshotError as error:  # a run that is still running may have deleted it
            log.warning("%s; it is not used", error)
        weights.load(partial(_read, base))
    return 0


def _read(source: BaseModel | Snapshot, view: View) -> "torch.Tensor":
    return source.read(view.name, view.rows, view.cols)


def base_model(run: RunFile, path: str | None = None) -> BaseModel:
    """Return the base model of a run, from `path` or from where its config says.

    Nothing else of the config is read, so a replay needs neither its engine nor its task.
    """
    model = run.attributes["config"]["model"]
    return BaseModel(fetch_model(path or model["path"], model.get("revision")))


def _views(run: RunFile, base: BaseModel) -> Iterator[View]:
    for name in run.attributes["tensors"]:
        if name not in base.tensors:
            raise ReplayError(f"{base.folder} is not the base model of this run: it has no tensor {name}")
        shape = base.tensors[name].shape
        rows, cols = matrix_shape(shape)
        yield View(name, shape, (0, rows), (0, cols), live=None)


def _compare(run: RunFile, weights: Weights, generation: int, otherwise: str) -> None:
    digest, recorded = weights.digest(), run.digest_after(generation)
    if digest != recorded:
        raise ReplayError(f"{otherwise}: its digest is {digest:016x}, the run file has {recorded:016x}")
