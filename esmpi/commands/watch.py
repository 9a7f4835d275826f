"""The command `esmpi watch`: show how runs are getting on, while they are running."""

import argparse
import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.errors import UserError

if TYPE_CHECKING:
    from esmpi.report.watching import View

HELP = "show how runs are getting on, in a terminal"

_PAGE_SHARE = 0.1
"""Of the time that may be spent on the page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="run directory, such as runs/quickstart, even before it exists, or a folder of run directories, such as "
        "that of a sweep; several runs are in one table",
    )
    parser.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="time between two looks; default: 2"
    )
    parser.add_argument(
        "--once", action="store_true", help="print one frame and end; the default if the output is not a terminal"
    )
    parser.add_argument("--page", action="store_true", help="also keep the page of `esmpi report` up to date")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --page: the page, as in `esmpi report`")


def process(arguments: argparse.Namespace) -> int:
    """Show frames until all runs are finished or ctrl-c is pressed; return the exit code."""
    if arguments.out is not None and not arguments.page:
        raise UserError("--out: no page is written without --page")
    try:
        return _watch(arguments)
    except KeyboardInterrupt:  # the usual way to end it
        return 0


def _watch(arguments: argparse.Namespace) -> int:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as error:
        raise UserError("watch needs rich: pip install 'esmpi[report]'") from error
    from esmpi.report.frame import frame
    from esmpi.report.watching import Watcher

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # terminals without Unicode
    console = Console(markup=False, highlight=False, emoji=False)
    watcher = Watcher(arguments.runs)
    page = _Page(arguments) if arguments.page else None
    views = watcher.look()
    if arguments.once or not sys.stdout.isatty() or console.is_dumb_terminal:
        if page is not None:
            page.update(views)
        console.print(frame(views, console, time.time(), page.told if page else ""))
        return 0 if any(view.facts is not None for view in views) else 2
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    # HDF5 turns what is raised while it reads into an error of its own, so ctrl-c is also noted.
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)  # gives the cursor back, too
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not asked:
            footer = (
                f"{time.strftime('%H:%M:%S')}  every {arguments.every:g} s  ctrl-c ends  {page.told if page else ''}"
            )
            live.update(frame(views, console, time.time(), footer), refresh=True)
            if page is not None:
                page.update(views)
            if all(view.state in ("finished", "stopped") for view in views) and not watcher.has_folders:
                live.update(frame(views, console, time.time(), page.told if page else ""), refresh=True)
                return 0
            time.sleep(arguments.every)
            views = watcher.look()
    return 0


class _Page:
    """The page of the runs, written again when one of them has changed, at most for a tenth of the time."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._shown: list[object] = []
        self._next = 0.0
        self.told = ""
        """What a frame says of it."""

    def update(self, views: "list[View]") -> None:
        """Write the page if there is something new to show."""
        readable = [view for view in views if view.facts is not None and not view.trouble]
        seen: list[object] = [view.seen for view in readable]
        ended = all(view.state in ("finished", "stopped") for view in views)
        if not readable or seen == self._shown or (time.monotonic() < self._next and not ended):
            return
        began = time.monotonic()
        try:
            self.told = f"page: {self._write(readable, len(views) == 1)}"
            self._shown = seen
        except UserError as error:  # such as a run file that has vanished since it was looked at
            self.told = f"no page: {' '.join(str(error).split())}"
        self._next = time.monotonic() + (time.monotonic() - began) / _PAGE_SHARE

    def _write(self, views: "list[View]", alone: bool) -> Path:
        from esmpi.report.compare import read_runs
        from esmpi.report.page import page_of_run, page_of_runs, write_page

        out: Path | None = self._arguments.out
        runs, unread = read_runs([view.directory for view in views])
        if alone:
            out = out or runs[0].path.parent / "report.html"
            write_page(page_of_run(runs[0]), out)
        else:
            out = out or views[0].directory.absolute().parent / "comparison.html"
            write_page(page_of_runs(runs, unread), out)
        return out


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0.1):
        raise argparse.ArgumentTypeError(f"at least 0.1 seconds, got {text}")
    return seconds
