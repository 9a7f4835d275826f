"""The pages of the documentation, taken apart: blocks of code with what a comment before them says, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

RUN_LANGUAGES = ("bash", "python", "yaml")
"""Blocks in these languages are run, or say why not. `text` is what something prints."""

CELLS = "<!-- the blocks are cells: they run in one process -->"
"""Says of a page that its Python blocks follow each other in one process, as in a notebook."""

_MARK = re.compile(r"<!-- (not run|tested as): (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    """Number of its first line in the page."""
    language: str
    text: str
    not_run: str | None = None
    """Why it is not run, by the comment `<!-- not run: REASON -->` before it."""
    tested_as: str | None = None
    """What is run in its place, by the comment `<!-- tested as: COMMAND -->` before it."""

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, by a comment in its first line."""
        found = re.fullmatch(r"# ([\w./-]+\.(?:py|yaml|toml))", self.text.split("\n", maxsplit=1)[0])
        return found[1] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").split("\n")
    start, mark = None, {}
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
            found = _MARK.fullmatch(lines[number - 1]) if number else None
            mark = {found[1].replace(" ", "_"): found[2]} if found else {}
        elif start is not None and line == "```":
            text = "\n".join(lines[start + 1 : number]) + "\n"
            yield Block(start + 2, lines[start].removeprefix("```"), text, **mark)
            start = None
    assert start is None, f"{page}: a block is not closed"


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
