"""The main program: `python -m esmpi.run CONFIG [key=value ...]`, serial, under mpiexec or under srun."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from esmpi.config import Config, load_config
from esmpi.errors import SharedError, UserError
from esmpi.launch.environment import launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the program's arguments to a parser."""
    parser.add_argument("config", help="YAML file of the run, such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change the config, such as es.sigma=2e-3"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config and the plan, then stop; loads no model",
    )
    parser.add_argument("--ranks", type=_positive, help="with --dry-run: plan for so many MPI ranks")
    parser.set_defaults(process=process)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code: 0, or 2 for an error that is the user's to mend."""
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
    started_by = launcher()
    speaks = started_by is None or started_by.rank == 0
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from esmpi.planning import describe

            if speaks:
                print(describe(config, arguments.ranks or (started_by.size if started_by else 1)))
            return 0
        if speaks:
            from esmpi.planning import check_inputs

            check_inputs(config)  # other ranks may see another file system: they look for themselves later
        if arguments.ranks is not None:
            raise UserError("--ranks is for --dry-run: the launcher decides, as in mpiexec -n 4 python -m esmpi.run")
    except UserError as error:
        # All ranks read the same config and fail alike: one says so.
        if speaks:
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    return _run(config, speaks)


def _run(config: Config, speaks: bool) -> int:
    # Threads that wait for work must not spin: ranks and other jobs on the same cores would crawl. Read by the
    # OpenMP library as it is loaded, so it has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from esmpi.comm import Comm

    try:
        comm = Comm()
    except UserError as error:
        if speaks:
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    try:
        from esmpi.session import open_session, start_logging
        from esmpi.train import train

        start_logging(config.log.level, comm)
        with ExitStack() as stack:
            session = open_session(config, comm, stack)
            train(session)
            session.finish()
        return 0
    except SharedError as error:
        if comm.is_root:
            print(f"esmpi: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"esmpi: {error}" if comm.size == 1 else f"esmpi: rank {comm.rank}: {error}", file=sys.stderr)
        comm.abort(2)
        return 2
    except BaseException:
        # The other ranks wait for this one and would wait for ever: first its traceback, then the end of all.
        comm.report_failure()
        comm.abort(1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
