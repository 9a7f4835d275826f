"""docs/troubleshooting.md quotes messages as esmpi prints them: one that was reworded is found here."""

import ast
import re

import pytest
from support import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
LEAST = 7
"""Characters of a part of a message that is looked for."""


def texts() -> str:
    """Return all texts of the program, a line for each, with a mark where a value goes in."""
    found = [(ROOT / "slurm" / "common.sh").read_text(), (ROOT / "slurm" / "es_countdown.sh").read_text()]
    for path in (ROOT / "esmpi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:\.\d+)?[sdrfg]", "\0", node.value))
    return "\n".join(found)


TEXTS = texts()


def test_there_are_many() -> None:
    assert len(MESSAGES) >= 45


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_so(message: str) -> None:
    parts = [part.strip() for part in re.split(r"\b[A-Z]{4,}\b", message)]
    # what names a key or a section stands in a variable
    parts = [re.sub(r"^(?:SECTION|KEY)?[\w.]*\.?(?:KEY)?: ", "", part) for part in parts]
    long = [part for part in parts if len(part) >= LEAST]
    assert long, message
    for part in long:
        assert part in TEXTS or all(piece in TEXTS for piece in part.split(": ") if len(piece) >= LEAST), part
