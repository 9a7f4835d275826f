"""Words for messages."""

import re
from collections.abc import Sequence

_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends in s: "1 rank", "2,000 members"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many there are besides."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def visible(text: str) -> str:
    """Return a text in which what would act instead of being shown has a code in its place; lines stay lines.

    These are control characters, among them those that a terminal obeys and those that reverse the direction of what
    follows, characters without width, and halves of characters, which no file can hold.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_line(text: str) -> str:
    """Return a text as `visible` does, and as one line: a name must not look like further lines of a message."""
    return visible(text).replace("\n", "\\n")
