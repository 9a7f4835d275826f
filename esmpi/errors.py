"""Errors that the user can correct: they end the program with one clear line instead of a traceback."""

import difflib
from collections.abc import Iterable

from esmpi.masking import masked_text
from esmpi.wording import visible


class UserError(Exception):
    """Something in the config, the data or the run directory; the text says what to do. Exit code 2.

    Its text may quote what a stranger wrote, or what the user's config says. It is shown on terminals and in logs, so
    nothing in it acts there, and no secret is in it.
    """

    exit_code = 2
    """Of a program that ends with this error."""

    def __str__(self) -> str:
        return visible(masked_text(super().__str__()))


class SharedError(UserError):
    """A user's error that all ranks raise together, so that only one of them has to say it."""


def said(error: BaseException) -> str:
    """Return an error that other code raised as one line: its type and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Return ", did you mean X?" for the valid name most like `wrong`, else a list of the valid ones."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]}?"
    return f" (there is: {', '.join(names)})" if 0 < len(names) <= 12 else ""
