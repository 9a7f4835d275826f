"""The main program: `python -m esmpi.run CONFIG [key=value ...]`, serial, under mpiexec or under srun."""

import argparse
import atexit
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from esmpi.config.reader import load_config
from esmpi.config.sections import Config
from esmpi.errors import SharedError, UserError
from esmpi.mpi.launcher import launcher, speaks_for_all
from esmpi.stop import STOPPED
from esmpi.stop.signals import StopFlag

if TYPE_CHECKING:
    from esmpi.mpi.comm import Comm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the program's arguments to a parser."""
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config and the plan, then stop; loads no model",
    )
    parser.add_argument("--ranks", type=_positive, help="with --dry-run: plan for so many MPI ranks")
    parser.set_defaults(process=process)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a config."""
    parser.add_argument("config", help="YAML file of the run, such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change the config, such as es.sigma=2e-3"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code.

    0: the run has all its generations; `STOPPED`: it was stopped before; 2: an error that is the user's to mend.
    """
    parser = argparse.ArgumentParser(
        prog="python -m esmpi.run",
        description="Fine-tune a language model with Evolution Strategies. Run it alone, or as "
        "`mpiexec -n 4 python -m esmpi.run ...` or `srun python -m esmpi.run ...`. "
        "The same command again goes on where the run stopped.",
    )
    add_arguments(parser)
    return process(parse(parser, argv))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, with overrides allowed after options, which argparse alone does not accept."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


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


def on_all_ranks(work: Callable[["Comm"], int]) -> int:
    """Collective. Do the work with the world of ranks, and end all of them if it fails on one; return the exit code.

    `work` returns it if all goes well.
    """
    # Threads that wait for work must not spin: ranks and other jobs on the same cores would crawl. Read by the
    # OpenMP library as it is loaded, so it has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from esmpi.mpi.comm import Comm

    try:
        comm = Comm()
    except UserError as error:
        if speaks_for_all():
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    try:
        try:
            code = work(comm)
        except SharedError as error:
            if comm.is_root:
                print(f"esmpi: {error}", file=sys.stderr)
            code = 2
        # srun may end all ranks when the first has an exit code: so nobody leaves before all have finished their files
        comm.barrier()
        return code
    except UserError as error:
        print(f"esmpi: {error}" if comm.size == 1 else f"esmpi: rank {comm.rank}: {error}", file=sys.stderr)
        comm.abort(2)
        return 2
    except BaseException:
        # The other ranks wait for this one and would wait for ever: first its traceback, then the end of all.
        comm.report_failure()
        comm.abort(1)
        return 1


def leave(code: int) -> NoReturn:
    """End a process that is nothing but `python -m esmpi...`, and leave its memory to the operating system.

    To take torch apart object by object, as sys.exit does, keeps a core busy for one to two seconds. Threads are
    waited for, exit handlers run, and output is written; what C libraries or a task's own files hold back is not.
    """
    whole = sys.modules["__main__"].__spec__
    if whole is None or not whole.name.startswith("esmpi.") or sys.flags.interactive or sys.gettrace() is not None:
        sys.exit(code)  # the process is a notebook's, a profiler's, a debugger's
    others = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    for thread in others:
        thread.join(1.0)  # those of a pool that was just given up need a moment
    if any(thread.is_alive() for thread in others):
        sys.exit(code)  # which waits for them
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()  # mpi4py does it where sys.exit comes to
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        sys.exit(code)  # which says so
    os._exit(code)


if __name__ == "__main__":
    leave(main())
