"""The command `esmpi submit`: submit a run to Slurm, or an array of runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmpi.arguments import add_config, print_notes
from esmpi.errors import UserError

HELP = "submit a run to Slurm (by submitit), or an array of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config(parser)
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
        "--array",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="submit a run for each value, such as sigma=1e-3,2e-3; if given several times, for each combination",
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="pass another option to sbatch, such as partition=gpu; may be given several times",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script; submit nothing")


def process(arguments: argparse.Namespace) -> int:
    """Submit the run and print the jobs, or print the batch script; return the exit code."""
    from esmpi.launch.combinations import expand
    from esmpi.launch.jobs import script, submit_all

    options = _options(arguments)
    array = {key: values.split(",") for key, values in _pairs("--array", arguments.array)}
    notes: list[str] = []
    configs = expand(arguments.config, arguments.overrides, array, notes)
    print_notes(notes)
    name = Path(arguments.config).stem
    if arguments.dry_run:
        print(script(configs, name, **options))
        return 0
    for job in submit_all(configs, name, **options):
        ranks: Any = job.submission().function
        print(f"job {job.job_id}: {ranks.directory}, log {job.paths.stdout}")
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `esmpi.launch.jobs.submit_all`."""
    more = dict(_pairs("--sbatch", arguments.sbatch))
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


def _pairs(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    for word, (key, _, value) in zip(words, pairs, strict=True):
        if not (key and value):
            raise UserError(f"{option}: {word!r} is not of the form key=value")
    return [(key, value) for key, _, value in pairs]
