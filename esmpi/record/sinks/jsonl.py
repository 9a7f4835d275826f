"""Sink `jsonl`: figures as JSON lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmpi.files import write_whole
from esmpi.record.past import GENERATION
from esmpi.record.sinks.base import Sink, earlier_lines, first_gap


class JsonLines(Sink):
    """Lines with `group`, `generation` and the figures in `<run directory>/figures.jsonl`."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        path = directory / "figures.jsonl"
        lines = earlier_lines(path)
        known = [(line, *_of(line)) for line in lines]
        self.lacks_from = first_gap({int(number) for _, group, number in known if group == GENERATION}, first)
        write_whole(path, "".join(f"{line}\n" for line, _, number in known if number < self.lacks_from).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"group": group, "generation": generation} | dict(figures)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _of(line: str) -> tuple[str, float]:
    """Return the group and the generation of a line, infinity for what is no such line."""
    try:
        row = json.loads(line)
        group, generation = row["group"], row["generation"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", math.inf
    return (str(group), generation) if type(generation) is int else ("", math.inf)
