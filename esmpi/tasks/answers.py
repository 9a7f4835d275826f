"""Find the answer in a completion. Each search looks at the end of a long text alone, and takes milliseconds."""

import re
from fractions import Fraction

MAX_DIGITS = 100
"""Characters of a number; a longer one is no number."""
MAX_NUMBER_TEXT = 20_000
"""Characters at the end of a text in which a number is looked for."""
MAX_TAGGED_TEXT = 100_000
"""Characters at the end of a text in which tags and calls of tools are looked for."""
MAX_BOX = 20_000
"""Characters of a box; what is longer is no answer."""

# A sign counts unless something stands before it: "12-5" ends with 5. Commas count where they part thousands.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)


def last_tagged(text: str) -> str | None:
    """Return what stands, stripped, in the last `<answer>...</answer>` of the text, None without one.

    Pairs are read from left to right as a non-greedy pattern would find them.
    """
    text = text[-MAX_TAGGED_TEXT:]
    answer, position = None, 0
    while True:
        start = text.find("<answer>", position)
        end = text.find("</answer>", start + len("<answer>"))
        if start < 0 or end < 0:
            return answer
        answer = text[start + len("<answer>") : end].strip()
        position = end + len("</answer>")


def last_boxed(text: str) -> str | None:
    r"""Return what stands, stripped, in the last `\boxed{...}` of the text, None without one that is closed.

    Braces inside of it are paired; `\{` and `\}` are no braces.
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start : start + MAX_BOX], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None


def last_number(text: str) -> Fraction | None:
    """Return the value of the last number of the text (`-1,234.5`, `$ 3`), None without one."""
    found, text = None, text[-MAX_NUMBER_TEXT:]
    for found in _NUMBER.finditer(text):  # noqa: B007  # the last one is wanted
        pass
    if found is None or len(found.group()) > MAX_DIGITS:
        return None
    return Fraction(re.sub("[$,]", "", found.group()))
