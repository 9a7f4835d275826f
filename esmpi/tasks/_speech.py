"""What environments say: texts and messages, checked."""

import reprlib
from typing import Any

_LONGEST = 100_000
"""Characters of what an environment says in a turn."""


def is_tool_turn(turn: Any) -> bool:
    """Return whether a message is the result of a tool."""
    return isinstance(turn, dict) and turn.get("role") == "tool" and isinstance(turn.get("content"), str)


def checked_text(text: Any) -> str:
    """Return what an environment says, checked."""
    if not isinstance(text, str):
        raise TypeError(f"{reprlib.repr(text)} is no text")
    if len(text) > _LONGEST:
        raise ValueError(f"the environment says {len(text):,} characters in a turn, more than {_LONGEST:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the environment says what is no Unicode text: {error}") from None
    return text


def checked_messages(turns: Any) -> list[dict[str, str]]:
    """Return messages, checked."""
    if (
        not isinstance(turns, list)
        or not turns
        or not all(
            isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
            for turn in turns
        )
    ):
        raise TypeError(f"{reprlib.repr(turns)} is neither a text nor messages")
    return [{name: checked_text(value) for name, value in turn.items()} for turn in turns]
