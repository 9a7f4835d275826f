"""docs/notebook.ipynb from docs/notebook.md: the same text and cells, for those who open it in Jupyter."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"


def notebook() -> str:
    """Return the notebook as JSON, in version 4.5 of the format, without outputs."""
    text = re.sub(r"<!--.*?-->\n*", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)):
        kind = "code" if number % 2 else "markdown"
        if not part.strip():
            continue
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell |= {"source": part.strip().splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"
