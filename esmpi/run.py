"""The main program: `python -m esmpi.run CONFIG [key=value ...]`, serial, under mpiexec or under srun."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from esmpi.arguments import add_config, parse, positive, read_config
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.leave import leave, open_streams
from esmpi.mpi.launcher import launcher, speaks_for_all
from esmpi.mpi.world import let_waiting_threads_sleep, on_all_ranks
from esmpi.stop import STOPPED
from esmpi.stop.signals import StopFlag, signals_restored

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
    parser.add_argument("--ranks", type=positive, help="with --dry-run: number of MPI ranks to plan for")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of this process.

    Returns
    -------
    int
        The exit code. 0: the run has all its generations. `STOPPED`: it was stopped before that, and the same command
        resumes it. 2: an error that is the user's to mend. 1: any other error.
    """
    if argv is None:
        open_streams()
    parser = argparse.ArgumentParser(
        prog="python -m esmpi.run",
        description="Fine-tune a language model with Evolution Strategies. Run it alone, or as "
        "`mpiexec -n 4 python -m esmpi.run ...` or `srun python -m esmpi.run ...`. "
        "Rerun the same command to resume a run that was stopped.",
    )
    add_arguments(parser)
    # a program that calls this goes on afterwards; a process of esmpi's own ignores signals until it ends
    with signals_restored() if argv is not None else nullcontext():
        return process(parse(parser, argv))


def process(arguments: argparse.Namespace) -> int:
    """Train, or print the plan of a dry run; return the exit code."""
    stop = StopFlag()
    try:
        config = read_config(arguments)
        if arguments.dry_run:
            _print_plan(config, arguments.ranks)
            return 0
        _set_environment(config)
        stop.install()  # before anything slow: until then a signal ends the process
        _check_inputs(config)
        if arguments.ranks is not None:
            raise UserError("--ranks is for --dry-run: the launcher decides, as in mpiexec -n 4 python -m esmpi.run")
    except UserError as error:
        # All ranks read the same config and fail alike, so one of them prints the error.
        if speaks_for_all():
            print(f"esmpi: {error}", file=sys.stderr)
        return 2

    def work(comm: "Comm") -> int:
        code = _train(config, comm, stop)
        stop.ignore()  # the run is over: a late signal must not change the exit code
        return code

    return on_all_ranks(work)


def _print_plan(config: Config, num_ranks: int | None) -> None:
    from esmpi.launch.dry_run import describe

    if speaks_for_all():
        started_by = launcher()
        print(describe(config, num_ranks or (started_by.size if started_by else 1)))


def _set_environment(config: Config) -> None:
    """Set the environment variables that libraries read when they are loaded. Must come first."""
    from esmpi.engines import engine_config

    engine_config(config).prepare()


def _check_inputs(config: Config) -> None:
    from esmpi.launch.dry_run import check_inputs

    if speaks_for_all():  # other ranks may see another file system, and check their own later
        check_inputs(config)


def _train(config: Config, comm: "Comm", stop: StopFlag) -> int:
    from esmpi.setup import open_session, start_logging
    from esmpi.train import train

    start_logging(config.log.level, comm)
    with ExitStack() as stack:
        with comm.complete():
            session = open_session(config, comm, stack, stop)
        train(session)
        session.finish()
    return 0 if session.finished else STOPPED


def train_here(config: Config) -> None:
    """Collective. Train in this process, which is not esmpi's own: errors are raised, and settings are restored.

    Where there are several ranks, an error that this one alone has ends all of them, as the others wait for it.
    """
    let_waiting_threads_sleep()
    _set_environment(config)
    from esmpi.mpi.comm import ROOT_LOST, Comm, UnsurvivedError
    from esmpi.mpi.world import ends_all_if_it_fails

    stop = StopFlag()
    with stop.installed(), _settings_restored():
        comm = Comm()
        with ends_all_if_it_fails(comm):
            with comm.together():
                _check_inputs(config)
            _train(config, comm, stop)
            if 0 in comm.meet():  # else rank 0 has finished its files
                raise UnsurvivedError(ROOT_LOST)


@contextmanager
def _settings_restored() -> Iterator[None]:
    """Restore, after a block, what training sets for the whole process: logging, and the threads of torch."""
    import torch

    logger = logging.getLogger("esmpi")
    handlers, propagate, level, raising = logger.handlers, logger.propagate, logger.level, logging.raiseExceptions
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        logger.handlers, logger.propagate, logging.raiseExceptions = handlers, propagate, raising
        logger.setLevel(level)
        torch.set_num_threads(num_threads)


if __name__ == "__main__":
    leave(main())
