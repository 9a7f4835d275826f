"""The command `esmpi report`: print what a run achieved, and draw it; or compare several runs."""

import argparse

HELP = "summarize a run and draw report.png, or compare several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "runs", nargs="+", metavar="run", help="run directory, such as runs/quickstart; several give a table"
    )
    parser.add_argument("--no-plot", action="store_true", help="print only the text; needs no matplotlib")


def process(arguments: argparse.Namespace) -> int:
    """Print the report, and write its pictures beside the run file; return the exit code."""
    if len(arguments.runs) > 1:
        from esmpi.report.compare import compare

        print(compare(arguments.runs))
        return 0
    from esmpi.report.plot import plot, plot_profile
    from esmpi.report.summary import summarize
    from esmpi.store.run_file import RunFile, run_file_path

    file = RunFile.open(run_file_path(arguments.runs[0]))
    print(summarize(file))
    if arguments.no_plot:
        return 0
    picture = file.path.parent / "report.png"
    plot(file, picture)
    print(f"\nplot: {picture}")
    if file.profile is not None:
        picture = file.path.parent / "profile.png"
        plot_profile(file, picture)
        print(f"profile of generation {file.profile['generation'][0]}: {picture}")
    return 0
