"""The text of docs/experiments.md, which tools/reference.py writes: page.md with tables and numbers from result files.

`{{grpo.table_tiny}}` in page.md stands for the fact `table_tiny` of the experiment `grpo`. The template has no measured
number of its own, which a test checks, so each number of the page can be traced to a line of a result file.
"""

import importlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from common import COMMITTED, FOLDER, read_rows

EXPERIMENTS = ("exactness", "grpo", "scaling", "paper", "smollm2", "public_code")
TEMPLATE = FOLDER / "page.md"
PLACE = re.compile(r"\{\{(\w+)\.(\w+)\}\}")


def experiment(name: str) -> Any:
    """Return the module of an experiment."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def facts(name: str) -> Mapping[str, str]:
    """Return what the committed results of an experiment say."""
    found: Mapping[str, str] = experiment(name).facts(read_rows(COMMITTED / f"{name}.jsonl"))
    return found


def experiments_page() -> str:
    """Return the page."""
    text = TEMPLATE.read_text(encoding="utf-8")
    known = {name: facts(name) for name in dict.fromkeys(name for name, _ in PLACE.findall(text))}
    return PLACE.sub(lambda place: known[place[1]][place[2]], text)
