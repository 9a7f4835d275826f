"""The command `esmpi probe`: try several sigmas on a few members before a run; alone, under mpiexec or under srun."""

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.arguments import add_config, positive, read_config
from esmpi.mpi.world import on_all_ranks

if TYPE_CHECKING:
    from esmpi.config.sections import Config
    from esmpi.mpi.comm import Comm

HELP = "try several sigmas on a few members, to choose es.sigma; also works under mpiexec and srun"

_LADDER = [10 ** (step / 2) for step in range(-4, 5)]
"""Factors of the config's sigma that are tried by default: from a hundredth to a hundred times."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_config(parser)
    parser.add_argument(
        "--sigmas", type=_sigmas, help="those to try, such as 1e-4,3e-4,1e-3; default: nine around the config's"
    )
    parser.add_argument("--members", type=positive, default=8, help="members to evaluate with each (default: 8)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the results into this PNG file")


def process(arguments: argparse.Namespace) -> int:
    """Evaluate members with each sigma and print what they do; return the exit code."""
    config = read_config(arguments)
    from esmpi.engines import engine_config

    engine_config(config).prepare()
    return on_all_ranks(partial(_probe, arguments, config))


def _probe(arguments: argparse.Namespace, config: "Config", comm: "Comm") -> int:
    """Collective."""
    from esmpi.probe import plot_probe, probe, table
    from esmpi.setup import open_trial, start_logging

    start_logging("warning", comm)
    sigmas = arguments.sigmas or [config.es.sigma * factor for factor in _LADDER if config.es.sigma * factor < 1e3]
    with ExitStack() as stack:
        rungs = probe(open_trial(config, comm, stack), sigmas, max(2, arguments.members))
    with comm.together():
        if comm.is_root:
            print(table(rungs))
            if arguments.plot is not None:
                plot_probe(rungs, config.es.sigma, arguments.plot)
                print(f"plot: {arguments.plot}")
    return 0


def _sigmas(text: str) -> list[float]:
    try:
        sigmas = sorted(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between them, got {text!r}") from None
    if not all(1e-12 <= sigma < 1e3 for sigma in sigmas):
        raise argparse.ArgumentTypeError(f"each must be between 1e-12 and 1000, got {text}")
    return sigmas
