"""Inputs of `tools/fuzz.py`: damaged bytes, JSON with odd values, and texts as a model may write them."""

import copy
import json
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esmpi.errors import UserError

READER_S = 5.0
"""CPU time of a reader for one input, which is small, with the processes that it starts. More is slow."""
GRADER_S = 0.010
"""CPU time of a grader for one completion. More is slow."""
LONGEST_TEXT = 1_000_000
"""Characters of a completion, at most; one token has about four."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is fuzzed."""

    make: Callable[[random.Random], bytes]
    check: Callable[[bytes], float | None]
    """Gives an input to a reader or a grader. Returns the CPU seconds that count, None if all that it took do."""
    slow_s: float = READER_S
    allowed: tuple[type[BaseException], ...] = (UserError,)
    """What may be raised."""


Make = Callable[[Path], Target]
"""Makes a target, which keeps its files in a folder of its own."""

_WORDS = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"{",
    b"[" * 50,
    b'"',
    b"&a ",
    b"*a",
    b"../",
    b"\x1b[2J",
    b"1e999",
    b"\n" * 50,
    b"," * 50,
]
_ODD: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, 1e-308, float("inf"), float("nan")),
    *("", " ", "x" * 1000, "\ud800", "\x1b[2J", "0", "-1", "1e999", "../..", "/etc/passwd", "\0", "٣", "a\nb", "{x}"),
    *(
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        {"": 0},
        {"a": {"b": []}},
        "@DEEP 20@",
        "@DEEP 400@",
        "@DEEP 990@",
        "@DEEP 9999@",
    ),
)
"""Values for any place of a JSON text; @DEEP n@ is a list in a list, n times."""
_PIECES = (
    *("<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "}", "\\frac{1}{2}", "####", "sqrt(", ")", "^", "**"),
    *(
        "9",
        "9" * 50,
        "1/0",
        "(1+2)*3",
        "\\text{",
        "$",
        "\\infty",
        "-",
        ",",
        "[[1,2],[3,4]]",
        "\n",
        "\u202e",
        "\0",
        "e9",
    ),
    *("!", " ", "1,234", ".5", "0", "\ud7ff", "é", "\u2028", "\t", "1 ", "\\", "((", "%", "|", "_", "=", "{", "&"),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes of which a few are replaced, inserted or left out."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        word = rng.choice((*_WORDS, rng.randbytes(rng.choice((1, 4, 8)))))
        kind = rng.random()
        if kind < 0.6:
            changed[at : at + len(word)] = word
        elif kind < 0.8:
            changed[at:at] = word
        elif kind < 0.95:
            del changed[at : at + rng.choice((1, 8, 64))]
        else:
            changed[at:at] = changed[: rng.randrange(200)]
    return bytes(changed)


def of_bytes(*samples: bytes) -> Callable[[random.Random], bytes]:
    """Return a maker of damaged samples."""
    return lambda rng: damaged(rng.choice(samples), rng)


def odd_json(tree: Any, rng: random.Random) -> Any:
    """Return a JSON value in which one or two places have odd values; the text is made of it by `json_text`."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        _walk(tree, places)
        if not places:
            return copy.deepcopy(rng.choice(_ODD))
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.1:
            del holder[key]
        elif kind < 0.2 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "\x1b", "generation", "reward"))] = copy.deepcopy(rng.choice(_ODD))
        elif kind < 0.3 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 100))))
        else:
            holder[key] = copy.deepcopy(rng.choice(_ODD))
    return tree


def json_text(tree: Any) -> str:
    """Return the JSON text of what `odd_json` has made."""
    text = json.dumps(tree)
    return re.sub(r'"@DEEP (\d+)@"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)


def of_json(*samples: Any) -> Callable[[random.Random], bytes]:
    """Return a maker of JSON texts: most with odd values, some with damaged bytes."""

    def make(rng: random.Random) -> bytes:
        sample = rng.choice(samples)
        if rng.random() < 0.2:
            return damaged(json.dumps(sample).encode(), rng)
        return json_text(odd_json(sample, rng)).encode()

    return make


def of_json_lines(samples: Sequence[Any]) -> Callable[[random.Random], bytes]:
    """Return a maker of JSON lines of which one is odd."""

    def make(rng: random.Random) -> bytes:
        lines = [json.dumps(sample).encode() for sample in samples]
        number = rng.randrange(len(lines))
        lines[number] = of_json(samples[number])(rng)
        return b"\n".join(lines) + b"\n"

    return make


def _walk(tree: Any, places: list[tuple[Any, Any]]) -> None:
    keys: Any = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        places.append((tree, key))
        _walk(tree[key], places)


def of_texts(*answers: str, wrap: str = "{}") -> Callable[[random.Random], bytes]:
    """Return a maker of completions.

    Parameters
    ----------
    *answers : str
        Good answers of the grader.
    wrap : str
        What a good completion has around the answer.
    """
    pieces = (*_PIECES, *answers)

    def make(rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.3:  # an answer that was changed a little
            text = wrap.format(_edited(rng.choice(answers), rng))
        elif kind < 0.6:  # pieces where an answer is expected
            text = wrap.format("".join(rng.choices(pieces, k=rng.choice((1, 3, 8, 20, 100)))))
        elif kind < 0.8:
            text = "".join(rng.choices(pieces, k=rng.choice((1, 5, 20, 200))))
        else:  # very long: a few pieces again and again
            unit = "".join(rng.choices(pieces, k=rng.choice((1, 1, 2, 3, 5))))
            most = min(LONGEST_TEXT, rng.choice((400, 900, 3_000, 9_000, 30_000, 100_000, 300_000, 1_000_000)))
            long = unit * (most // len(unit))
            text = rng.choice(
                (long, wrap.format(long), wrap.format(rng.choice(answers)) + long, long + wrap.format(answers[0]))
            )
            if rng.random() < 0.3:
                text = "".join(rng.choices(pieces, k=3)) + text + "".join(rng.choices(pieces, k=3))
        if rng.random() < 0.1:
            text = _edited(text, rng)
        return text.encode(errors="surrogatepass")

    return make


def _edited(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice((rng.choice(_PIECES), rng.choice(string.printable)))
        text = text[:at] + piece + text[at + rng.choice((0, 0, 1, 5)) :]
    return text
