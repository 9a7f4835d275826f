"""Read problems from files, folders and the Hugging Face hub: whatever it is, a list of JSON-like objects comes out."""

import json
from collections.abc import Iterable
from datetime import date, time
from itertools import islice
from pathlib import Path
from typing import Any

from esmpi.errors import UserError, nearest, said

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def check_source(what: str, source: str, others: Iterable[str]) -> None:
    """Raise UserError if a source is neither there nor can be a hub id; looks at names only. `others` are choices."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix not in SUFFIXES:
        raise UserError(f"{what}: {source} must end with one of {', '.join(SUFFIXES)}")
    if not path.exists() and not _can_be_hub_id(source):
        found = [entry for suffix in SUFFIXES for entry in path.parent.glob(f"*{suffix}")]
        raise UserError(f"{what}: no file {source}{nearest(source, [*map(str, found), *others])}")


def read_rows(what: str, source: str, split: str, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the first `limit` rows of a source, each with words that say where it stands.

    Parameters
    ----------
    what : str
        The config's key, for messages.
    source : str
        A file with one of `SUFFIXES`, a folder that `datasets` saved to disk, or a hub id (`org/name:subset`).
    split : str
        Which split of a folder or hub id that has several.
    limit : int or None

    Raises
    ------
    UserError
        If it cannot be read, or a row is not an object.
    """
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return _json_lines(what, path, limit)
    rows: Iterable[Any]
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{what}: cannot read {source}: {error}") from None
        if not isinstance(rows, list):
            raise UserError(f"{what}: {source} must hold a list of objects")
    else:
        rows = _data_set(what, source, path, split)
    found = []
    for number, row in enumerate(islice(rows, limit), start=1):
        place = f"{source} row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{what}: {place}: not an object")
        # a cell of a table is text, a list in it is written as JSON
        cell = _cell if path.suffix == ".csv" else _plain
        try:
            found.append((place, {key: cell(value) for key, value in row.items()}))
        except TypeError as error:
            raise UserError(f"{what}: {place}: {error}") from None
    return found


def _json_lines(what: str, path: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    try:
        # not splitlines(): a JSON string may hold U+2028 and other characters at which that cuts
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: cannot read {path}: {error}") from error
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if len(rows) == limit:
            break
        if line.strip():
            place = f"{path} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{what}: {place}: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{what}: {place}: not a JSON object")
            rows.append((place, row))
    return rows


def _data_set(what: str, source: str, path: Path, split: str) -> Iterable[Any]:
    """Return what the library `datasets` reads."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what}: {source} needs the library datasets: pip install 'esmpi[data]'") from None
    datasets.disable_progress_bars()
    try:
        if path.is_file():
            # an answer may be the word None, or NA: in a table only an empty cell is nothing
            more: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if path.suffix == ".csv" else {}
            return datasets.load_dataset(path.suffix[1:], data_files=str(path), split="train", **more)
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
        else:
            name, _, subset = source.partition(":")
            found = datasets.load_dataset(name, subset or None)
    except Exception as error:  # of many libraries: no network, no such data set, a damaged file
        raise UserError(f"{what}: cannot read {source}: {said(error)}") from error
    if isinstance(found, dict):
        if split not in found:
            raise UserError(f"{what}: {source} has no split {split!r}{nearest(split, list(found))}")
        found = found[split]
    return found


def _can_be_hub_id(source: str) -> bool:
    name = source.partition(":")[0]
    return name.count("/") == 1 and not source.startswith((".", "/", "~")) and Path(name).suffix not in SUFFIXES


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it: problems go into files and between ranks."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a value of type {type(value).__name__}: only text, numbers, dates, lists and objects are read")


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return _plain(value)
