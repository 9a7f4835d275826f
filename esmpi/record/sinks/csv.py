"""Sink `csv`: figures as a table."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmpi.files import write_whole
from esmpi.record.past import GENERATION
from esmpi.record.sinks.base import Sink, earlier_lines, first_gap
from esmpi.wording import visible_line

_HEAD = ["group", "generation", "name", "value"]
_GENERATION = re.compile("[0-9]{1,18}")


class Csv(Sink):
    """Rows of group, generation, name and value in `<run directory>/figures.csv`: one for each figure."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        path = directory / "figures.csv"
        lines = earlier_lines(path)
        rows = [row for line in lines[1:] if (row := _row(line)) is not None]
        self.lacks_from = first_gap({int(row[1]) for row in rows if row[0] == GENERATION}, first)
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows([_HEAD, *(row for row in rows if int(row[1]) < self.lacks_from)])
        write_whole(path, kept.getvalue().encode())
        self._file = path.open("a", encoding="utf-8", newline="")

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows(
            [_cell(group), generation, _cell(name), repr(float(value))] for name, value in figures.items()
        )
        self._file.write(rows.getvalue())  # at once, so that a generation is there as a whole or not at all
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _row(line: str) -> list[str] | None:
    """Return the cells of a line, None for what is no such line, as a killed process may leave it."""
    try:
        rows = list(csv.reader([line]))
    except csv.Error:
        return None
    is_row = len(rows) == 1 and len(rows[0]) == len(_HEAD) and _GENERATION.fullmatch(rows[0][1]) is not None
    return rows[0] if is_row else None


def _cell(name: str) -> str:
    """Return a name as a cell that no spreadsheet takes for a formula."""
    name = visible_line(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t")) else name
