"""The command `esmpi submit`: submit a run to Slurm, or an array of runs."""

import argparse
from pathlib import Path
from typing import Any

from esmpi.arguments import add_config, print_notes
from esmpi.commands import _jobs

HELP = "submit a run to Slurm (by submitit), or an array of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config(parser)
    _jobs.add_arguments(parser)
    parser.add_argument(
        "--array",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="submit a run for each value, such as sigma=1e-3,2e-3; if given several times, for each combination",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script; submit nothing")


def process(arguments: argparse.Namespace) -> int:
    """Submit the run and print the jobs, or print the batch script; return the exit code."""
    from esmpi.launch.combinations import expand
    from esmpi.launch.jobs import script, submit_all

    options = _jobs.resources(arguments)
    array = {key: values.split(",") for key, values in _jobs.pairs("--array", arguments.array)}
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
