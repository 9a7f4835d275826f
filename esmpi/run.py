"""The main program: `python -m esmpi.run CONFIG [key=value ...]`, serial, under mpiexec or under srun."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from esmpi.arguments import add_config, parse, positive
from esmpi.config.reader import load_config
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.leave import leave
from esmpi.mpi.launcher import launcher, speaks_for_all
from esmpi.mpi.world import on_all_ranks
from esmpi.stop import STOPPED
from esmpi.stop.signals import StopFlag

if TYPE_CHECKING:
    from esmpi.mpi.comm import Comm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the program's arguments to its parser."""
    add_config(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config and the plan, then stop; loads no model",
    )
    parser.add_argument("--ranks", type=positive, help="with --dry-run: plan for so many MPI ranks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code.

    0: the run has all its generations; `STOPPED`: it was stopped before; 2: an error that is the user's to mend.
    """
    parser = argparse.ArgumentParser(
        prog="python -m esmpi.run",
        description="Fine-tune a language model with Evolution Strategies. Run it alone, or as "
        "`mpiexec -n 4 python -m esmpi.run ...` or `srun python -m esmpi.run ...`. "
        "Rerun the same command to resume a run that was stopped.",
    )
    add_arguments(parser)
    return process(parse(parser, argv))


def process(arguments: argparse.Namespace) -> int:
    """Load the config, then train or, for a dry run, tell the plan."""
    speaks = speaks_for_all()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from esmpi.launch.dry_run import describe

            if speaks:
                started_by = launcher()
                print(describe(config, arguments.ranks or (started_by.size if started_by else 1)))
            return 0
        # before all that takes its time: a signal that is not yet taken over ends the process
        stop = StopFlag()
        stop.install()
        if speaks:
            from esmpi.launch.dry_run import check_inputs

            check_inputs(config)  # other ranks may see another file system: they look for themselves later
        if arguments.ranks is not None:
            raise UserError("--ranks is for --dry-run: the launcher decides, as in mpiexec -n 4 python -m esmpi.run")
    except UserError as error:
        # All ranks read the same config and fail alike: one says so.
        if speaks:
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    return on_all_ranks(partial(_train, config, stop=stop))


def _train(config: Config, comm: "Comm", stop: StopFlag) -> int:
    from esmpi.setup import open_session, start_logging
    from esmpi.train import train

    start_logging(config.log.level, comm)
    with ExitStack() as stack:
        session = open_session(config, comm, stack, stop)
        train(session)
        session.finish()
    stop.ignore()
    return 0 if session.finished else STOPPED


if __name__ == "__main__":
    leave(main())
