"""Words for messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends in s: "1 rank", "2,000 members"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
