"""The command `esmpi doctor`: check what a run needs, on every rank; alone, under mpiexec or under srun."""

import argparse

from esmpi.arguments import add_overrides, read_config
from esmpi.mpi.world import on_all_ranks

HELP = "check that a run would find everything it needs; also works under srun"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("config", nargs="?", help="YAML file of the run: check its model and directory, too")
    add_overrides(parser, "change the config, such as model.path=models/mine")


def process(arguments: argparse.Namespace) -> int:
    """Print what was found; return the exit code."""
    from esmpi.launch.doctor import examine

    config = None if arguments.config is None else read_config(arguments)
    return on_all_ranks(lambda comm: examine(comm, config))
