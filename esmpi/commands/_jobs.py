"""Arguments that say what a job on Slurm gets, for the commands that submit runs."""

import argparse
from collections.abc import Sequence
from typing import Any

from esmpi.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for nodes, ranks, cores, GPUs, time and further options of sbatch."""
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes; default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs of each node; default: 0")
    parser.add_argument("--tasks-per-node", type=int, help="ranks of each node; default: one for each GPU, or one")
    parser.add_argument("--cpus-per-task", type=int, help="CPU cores of each rank; default: Slurm's")
    parser.add_argument("--time", default="24:00:00", help="time limit, as Slurm writes it; default: 24:00:00")
    parser.add_argument(
        "--signal-delay",
        type=int,
        metavar="SECONDS",
        help="ask ranks to stop this long before the time limit; default: 600, or a quarter of a short limit",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="pass another option to sbatch, such as partition=gpu; may be given several times",
    )


def resources(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_arguments` has asked for, as keyword arguments of `esmpi.launch.jobs.submit_all`."""
    more = dict(pairs("--sbatch", arguments.sbatch))
    for key in more:
        if "." in key:
            raise UserError(f"--sbatch: {key} is no option of sbatch; keys of the config stand without --sbatch")
    return {
        "time_limit": arguments.time,
        "signal_delay_s": arguments.signal_delay,
        "nodes": arguments.nodes,
        "gpus_per_node": arguments.gpus_per_node,
        "tasks_per_node": arguments.tasks_per_node,
        "cpus_per_task": arguments.cpus_per_task,
        **more,
    }


def pairs(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """Return words of the form key=value as pairs."""
    found = [word.partition("=") for word in words]
    for word, (key, _, value) in zip(words, found, strict=True):
        if not (key and value):
            raise UserError(f"{option}: {word!r} is not of the form key=value")
    return [(key, value) for key, _, value in found]
