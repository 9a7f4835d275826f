"""Texts of models and strangers, as a page shows them."""

import html

from esmpi.wording import visible


def num_bytes(text: str) -> int:
    """Return how many bytes a text takes in a page."""
    return len(html.escape(visible(text)).encode())
