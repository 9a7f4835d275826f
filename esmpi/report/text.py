"""Texts of models and strangers, as a page shows them."""

import html
import re

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text in which what a browser would not show has a code in its place.

    These are control characters, among them those that reverse the direction of what follows, and halves of characters,
    which no file can hold.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def num_bytes(text: str) -> int:
    """Return how many bytes a text takes in a page."""
    return len(html.escape(visible(text)).encode())
