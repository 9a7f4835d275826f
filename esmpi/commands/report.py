"""The command `esmpi report`: show what a run achieved, as text, as a page and as pictures; or compare several runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.errors import UserError

if TYPE_CHECKING:
    from esmpi.report.figure import Figure
    from esmpi.store.run_file import RunFile

HELP = "summarize a run and make a page with its figures and completions, or compare several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "runs", nargs="+", metavar="run", help="run directory, such as runs/quickstart; several are compared"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page; default: report.html in the run directory, or comparison.html beside the first of several runs",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="also write each figure as PNG and SVG into this folder"
    )
    parser.add_argument("--no-plot", action="store_true", help="print only the text; needs no matplotlib")


def process(arguments: argparse.Namespace) -> int:
    """Print the report, and write its page and pictures; return the exit code."""
    if arguments.no_plot and (arguments.out is not None or arguments.figures is not None):
        raise UserError("--no-plot writes no page and no figures: leave it out, or leave out --out and --figures")
    return _one(arguments) if len(arguments.runs) == 1 else _several(arguments)


def _one(arguments: argparse.Namespace) -> int:
    from esmpi.store.run_file import RunFile, run_file_path
    from esmpi.store.validation import shown

    file = RunFile.open(run_file_path(arguments.runs[0]))
    with shown(file.path):
        return _show(file, arguments)


def _show(file: "RunFile", arguments: argparse.Namespace) -> int:
    from esmpi.report.summary import summarize

    print(summarize(file))
    if arguments.no_plot:
        return 0
    from esmpi.report.of_run import figures_of
    from esmpi.report.page import page_of_run, write_page
    from esmpi.report.plot import plot, plot_profile

    folder = file.path.parent if arguments.out is None else arguments.out.parent
    page = folder / "report.html" if arguments.out is None else arguments.out
    write_page(page_of_run(file), page)
    print(f"\npage: {page}")
    if arguments.figures is not None:
        _write_figures(figures_of(file), arguments.figures)
    picture = folder / "report.png"
    plot(file, picture)
    print(f"plot: {picture}")
    if file.profile is not None:
        picture = folder / "profile.png"
        plot_profile(file, picture)
        print(f"profile of generation {file.profile['generation'][0]}: {picture}")
    return 0


def _several(arguments: argparse.Namespace) -> int:
    from esmpi.report.compare import read_runs
    from esmpi.store.validation import shown

    runs, unread = read_runs(arguments.runs)
    with shown(*(run.path for run in runs)):
        return _show_several(runs, unread, arguments)


def _show_several(runs: "list[RunFile]", unread: list[str], arguments: argparse.Namespace) -> int:
    from esmpi.report.compare import aligned, table
    from esmpi.store.run_file import run_file_path

    print("\n".join([*aligned(table(runs), 1), *unread]))
    if arguments.no_plot:
        return 0
    from esmpi.report.of_runs import figures_of_groups, groups_of
    from esmpi.report.page import page_of_runs, write_page

    beside = run_file_path(arguments.runs[0]).absolute().parent.parent
    page = beside / "comparison.html" if arguments.out is None else arguments.out
    write_page(page_of_runs(runs, unread), page)
    print(f"\npage: {page}")
    if arguments.figures is not None:
        _write_figures(figures_of_groups(groups_of(runs)), arguments.figures)
    return 0


def _write_figures(figures: "list[Figure]", folder: Path) -> None:
    from esmpi.report.draw import draw, save

    written = save({figure.name: draw([figure]) for figure in figures}, folder)
    print(f"figures: {len(written)} files in {folder}")
