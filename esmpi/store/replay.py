"""Rebuild theta of any generation from the base model and the run file, bit for bit. Needs no GPU, MPI or engine."""

from collections.abc import Iterator

from esmpi.checkpoint import Checkpoint, fetch_model
from esmpi.config import Config
from esmpi.errors import UserError
from esmpi.store.run_file import RunFile
from esmpi.weights import View, Weights, matrix_shape


class ReplayError(UserError):
    """What was rebuilt is not what the run had."""


def replay(
    run: RunFile,
    base: Checkpoint,
    generation: int,
    num_threads: int,
) -> Weights:
    """Return theta of a generation, checked against the digest in the run file.

    Parameters
    ----------
    run : RunFile
    base : Checkpoint
        The base model of the run.
    generation : int
        0 is the base model; at most `run.num_generations`.
    num_threads : int

    Raises
    ------
    ReplayError
        If the base model or the result has not the recorded digest.
    UserError
        If the run has no such generation.
    """
    if not 0 <= generation <= run.num_generations:
        raise UserError(f"generation {generation}: {run.path} has generations 0 to {run.num_generations}")
    weights = Weights(list(_views(run, base)), lambda view: base.read(view.name, view.rows, view.cols), num_threads)
    _compare(run, weights, 0, f"{base.folder} is not the base model of this run")
    for i in range(generation):
        weights.update(run.members[i]["seed"], run.members[i]["coefficient"])
    _compare(run, weights, generation, f"the log does not lead to theta of generation {generation}")
    return weights


def base_model(config: Config, path: str | None = None) -> Checkpoint:
    """Return the base model of a run, from `path` or from where its config says."""
    return Checkpoint(fetch_model(path or config.model.path, config.model.revision))


def _views(run: RunFile, base: Checkpoint) -> Iterator[View]:
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
