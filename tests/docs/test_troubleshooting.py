"""docs/troubleshooting.md quotes messages as esmpi prints them: one that was reworded is found here.

A message is a heading of level 3 that is one code span, in single or in double backticks. A word in capitals that
`PLACEHOLDERS` lists stands for what varies; what is between such words is in the source, letter by letter, in one text
and in this order.
"""

import ast
import re
from functools import cache

import pytest
from support import ROOT

from esmpi.config.reader import fields_of

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`|`` (.+) ``")
MESSAGES = [found[1] or found[2] for heading in HEADINGS if (found := SPAN.fullmatch(heading))]
PLACEHOLDERS = (
    *("COLUMN", "COMMAND", "EXAMPLE", "HOLDER", "KEY", "LAUNCHER", "NAME", "NAMES", "NUMBER", "NUMBERS", "PATH"),
    *("PLACE", "RANGE", "SECTION", "SOURCE", "TEXT", "TYPE", "VALUE", "VERSION", "WORD", "WORDS"),
)
LEAST = 8
"""Characters that a part of a message has if it is looked for."""
HOLE = "\0"
"""Stands in the source's texts for what is put in."""


def text_of(node: ast.expr) -> str:
    """Return the text of a literal, of an f-string, or of a sum of them, with holes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        # what logging puts in
        return re.sub(r"%(?:\.\d+)?[dfgrs]", HOLE, node.value).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value) if isinstance(node.value, ast.Call) else HOLE
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "counted":
        return f"{HOLE} {text_of(node.args[1])}s"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return HOLE


@cache
def texts() -> list[str]:
    """Return all texts of the program and of its job scripts."""
    found = []
    for path in sorted((ROOT / "esmpi").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}  # which nobody prints
        for node in nodes:
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and node not in docstrings:
                found.append(text_of(node))
    for path in sorted((ROOT / "slurm").glob("*.sh")):
        lines = re.findall(r'"([^"]*)"', path.read_text(encoding="utf-8"))
        found += [re.sub(r"\$\{\w+[^}]*\}|\$\w+", HOLE, line) for line in lines]
    return [text for text in found if text.strip(HOLE)]


def parts_of(message: str) -> list[str]:
    """Return what is constant in a message, without what is too short to be looked for."""
    parts = re.split(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b", message)
    return [part for part in parts if len(part) >= LEAST]


def is_in(parts: list[str], text: str) -> bool:
    """Return whether all parts are in a text, in their order."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def is_said(message: str) -> bool:
    """Return whether the program has a text with all that is constant in a message."""
    parts = parts_of(message)
    return bool(parts) and any(is_in(parts, text) for text in texts())


def forms(message: str) -> list[str]:
    """Return a message, and what of it may be in the source alone, if another place puts the key before it."""
    found = [message]
    if key := re.match(r"(?:SECTION\.)?KEY: ", message):
        found.append(message[key.end() :])
    elif (key := re.match(r"([a-z]+)\.([a-z_]+): ", message)) and key[2] in fields_of(key[1]):
        # a section's own check names the key, and the reader puts the section before it
        found += [message[key.start(2) :], message[key.end() :]]
    return found


def test_there_are_many() -> None:
    assert len(MESSAGES) >= 45
    assert len(set(MESSAGES)) == len(MESSAGES)


def test_headings_are_code_spans() -> None:
    assert [heading for heading in HEADINGS if not SPAN.fullmatch(heading)] == []


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_so(message: str) -> None:
    assert any(is_said(form) for form in forms(message)), parts_of(message)


def test_another_wording_is_found() -> None:
    assert is_said("no run file PATH: name the run's directory")
    assert not is_said("no run file PATH: name the directory of the run")
    assert not is_said("name the run's directory: no run file PATH"), "the order counts"
