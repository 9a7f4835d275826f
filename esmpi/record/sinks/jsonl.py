"""Sink `jsonl`: figures as JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmpi.files import write_whole
from esmpi.record.sinks.base import Sink


class JsonLines(Sink):
    """Lines with `group`, `generation` and the figures in `<run directory>/figures.jsonl`."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        path = directory / "figures.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_whole(path, "".join(f"{line}\n" for line in lines if _generation_of(line) < first).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"group": group, "generation": generation} | dict(figures)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _generation_of(line: str) -> float:
    """Return the generation of a line, infinity for what a killed process left half written."""
    try:
        return float(json.loads(line)["generation"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
