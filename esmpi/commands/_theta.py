"""Rebuild theta of a generation, for the commands that need it."""

import argparse
import os
from typing import TYPE_CHECKING

from esmpi.arguments import add_generation, add_run
from esmpi.progress import Progress

if TYPE_CHECKING:
    from esmpi.model.base_model import BaseModel
    from esmpi.store.run_file import RunFile
    from esmpi.weights.host import Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which theta, and from what it is rebuilt."""
    add_run(parser)
    add_generation(parser)
    parser.add_argument("--model", help="where the base model is now, if not where the config says")
    parser.add_argument("--from-base", action="store_true", help="start from the base model, not from a snapshot")


def rebuild(arguments: argparse.Namespace, verify: bool = False) -> "tuple[RunFile, BaseModel, Weights, int]":
    """Rebuild theta and print its digest.

    Parameters
    ----------
    arguments : Namespace
        With the arguments that `add_arguments` adds.
    verify : bool
        Whether to start from the base model, and to check and print the digest of every generation.

    Returns
    -------
    RunFile, BaseModel, Weights, int
        The run, its base model, theta, and the generation that theta belongs to.

    Raises
    ------
    UserError
        If there is no such run, generation or model, or if a digest is not the one that the run file has.
    """
    from esmpi.store.run_file import RunFile, run_file_path

    file = RunFile.open(run_file_path(arguments.run))
    from esmpi.store.replay import base_model, replay  # takes seconds to import

    generation = file.choose_generation(arguments.generation, arguments.best)
    base = base_model(file, arguments.model)

    def tell(verified: int) -> None:
        print(f"generation {verified}: theta {file.digest_after(verified):016x}, as the run file has it", flush=True)

    with Progress("generations replayed") as progress:
        weights = replay(
            file,
            base,
            generation,
            len(os.sched_getaffinity(0)),
            from_base=arguments.from_base or verify,
            check=tell if verify else None,
            progress=None if verify else progress,  # which has a line for each generation
        )
    if verify:
        print(verified(len(file.steps_to(generation)), generation))
    else:
        tell(generation)
    return file, base, weights, generation


def verified(count: int, generation: int) -> str:
    """Return a sentence that says that all is right, if `count` generations lead to theta of a generation."""
    if generation < 2:
        return f"{'the first generation' if generation else 'the base model'} is what the run had"
    if count == generation:
        return f"all {generation} generations are what the run had"
    are, others = "is" if count == 1 else "are", "the others" if generation - count > 1 else "the other"
    return f"{count} of {generation} generations {are} what the run had; the guard took back {others}"
