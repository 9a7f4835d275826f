"""Read problems from files, folders and the Hugging Face hub: whatever it is, a list of JSON-like objects comes out."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date, time
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from esmpi.errors import UserError, nearest, said
from esmpi.files import open_regular

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

_REACH_S = 10.0
"""How long to wait for the hub's first answer."""


def check_source(what: str, source: str, others: Iterable[str]) -> None:
    """Raise UserError if a source neither exists nor can be a hub id. Checks only names; `others` are the other valid
    values, for the message."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix not in SUFFIXES:
        raise UserError(f"{what}: {source} must end with one of {', '.join(SUFFIXES)}")
    if not path.exists() and not _can_be_hub_id(source):
        found = [entry for suffix in SUFFIXES for entry in path.parent.glob(f"*{suffix}")]
        raise UserError(f"{what}: no file {source}{nearest(source, [*map(str, found), *others])}")


def read_rows(what: str, source: str, split: str, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the first `limit` rows of a source, each with its location in words, for messages.

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
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    if path.suffix in readers:
        try:
            # spreadsheets put a byte order mark at the beginning
            with open_regular(path) as file:
                text = file.read().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{what}: cannot read {source}: {error}") from None
        except UserError as error:
            raise UserError(f"{what}: cannot read {source}: {error}") from None
        try:
            rows = readers[path.suffix](str(path), text)
            return list(islice(((place, _checked(place, row)) for place, row in rows), limit))
        except ValueError as error:
            raise UserError(f"{what}: {error}") from None
    found = []
    rows_of_set = _decoded(what, source, _data_set(what, source, path, split, limit))
    for number, row in enumerate(islice(rows_of_set, limit), start=1):
        place = f"{source} row {number}"
        try:
            found.append((place, {key: _plain(value, key) for key, value in row.items()}))
        except TypeError as error:
            raise UserError(f"{what}: {place}: {error}") from None
    return found


def _json_lines(path: str, text: str) -> Iterator[tuple[str, Any]]:
    # not splitlines(), which also splits at U+2028 and other characters that a JSON string may contain
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path} line {number}"
            yield place, _loaded(place, line)


def _json(path: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = _loaded(f"cannot read {path}", text)
    except ValueError as error:
        hint = "; with an object on each line it is a .jsonl file" if "Extra data" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of objects")
    return ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _csv(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Read a table whose first line has names. A cell is text; a list or object in JSON is read, an empty one is None.

    A column in which each cell is a number just as JSON writes it has numbers: 7 and 0.5, but not 007, 1e3 or 0.50,
    which as numbers could not be told from 7, 1000 and 0.5.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [row for row in csv.reader(StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    names = rows[0] if rows else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not rows or twice:
        raise ValueError(f"cannot read {path}: " + (f"two columns are called {twice[0]!r}" if rows else "it is empty"))
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise ValueError(f"{path} row {number}: {len(row)} cells for {len(names)} columns ({', '.join(names)})")
    columns = [_column(list(cells)) for cells in zip(*rows[1:], strict=True)]
    cells = zip(*columns, strict=True)
    return ((f"{path} row {i}", dict(zip(names, row, strict=True))) for i, row in enumerate(cells, start=1))


def _column(cells: list[str]) -> list[Any]:
    numbers = [_number(cell) for cell in cells]
    if all(number is not None or not cell for number, cell in zip(numbers, cells, strict=True)):
        return numbers
    return [_cell(cell) for cell in cells]


def _number(cell: str) -> int | float | None:
    """Return the number in a cell, or None if the cell is not a number as JSON writes it."""
    for kind in (int, float):
        try:
            if str(number := kind(cell)) == cell and abs(number) < math.inf:
                return number
        except ValueError:  # also of more digits than Python reads
            continue
    return None


def _cell(cell: str) -> Any:
    if cell[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell or None


def _loaded(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{place}: brackets too deep inside one another") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _checked(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not an object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: half a character (a lone surrogate, \\ud800 to \\udfff), which is no text"
        ) from None
    return row


def _decoded(what: str, source: str, rows: Iterable[Any]) -> Iterator[Any]:
    """Yield rows, which the library decodes only now; raise UserError if they are damaged."""
    try:
        yield from rows
    except Exception as error:  # of several libraries
        raise UserError(f"{what}: cannot read {source}: {said(error).rstrip('.')}") from error


def _data_set(what: str, source: str, path: Path, split: str, limit: int | None) -> Iterable[Any]:
    """Return what the library `datasets` reads, of which the first `limit` rows are wanted."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what}: {source} needs the library datasets: pip install 'esmpi[data]'") from None
    datasets.disable_progress_bars()
    try:
        if path.is_file():
            return datasets.load_dataset(path.suffix[1:], data_files=str(path), split="train")
        if path.is_dir():
            found = datasets.load_from_disk(str(path))
        else:
            name, _, subset = source.partition(":")
            # otherwise it would retry for half a minute
            with nullcontext() if hub_answers(name) else offline():
                found = datasets.load_dataset(name, subset or None)
    except Exception as error:  # many libraries are involved: no network, no such data set, a damaged file
        advice = ""
        if not path.exists():
            advice = "; without internet: load it where there is, save_to_disk(FOLDER), and name the folder here"
        raise UserError(f"{what}: cannot read {source}: {said(error).rstrip('.')}{advice}") from error
    if isinstance(found, dict):
        if split not in found:
            raise UserError(f"{what}: {source} has no split {split!r}{nearest(split, list(found))}")
        found = found[split]
    if path.is_dir():
        _check_offsets(what, source, found, limit)
    return found


def _check_offsets(what: str, source: str, found: Any, limit: int | None) -> None:
    """Raise UserError if texts reach beyond their table: reading one would end this process."""
    table = found.data if limit is None or found._indices is not None else found.data.slice(0, limit)
    try:
        table.validate(full=True)
    except Exception as error:  # of pyarrow
        raise UserError(f"{what}: cannot read {source}: {said(error).rstrip('.')}") from error


def hub_answers(name: str = "any/name") -> bool:
    """Return whether the hub can be reached, asking it for a data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=_REACH_S)
    except HfHubHTTPError:
        return True  # and `datasets` will report the error
    except Exception:  # the exception's type depends on the HTTP library, and so on the version
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Restrict `datasets` to its cache and to local files."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _can_be_hub_id(source: str) -> bool:
    name = source.partition(":")[0]
    return name.count("/") == 1 and not source.startswith((".", "/", "~")) and Path(name).suffix not in SUFFIXES


def _plain(value: Any, key: str) -> Any:
    """Return a value of a table as JSON has it: problems go into files and between ranks."""
    if isinstance(value, dict):
        return {inner: _plain(item, f"{key}.{inner}") for inner, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, key) for item in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"a value of type {type(value).__name__}: only text, numbers, dates, lists and objects are read "
        f"(column {key!r})"
    )
