"""Worked examples that stand in front of every prompt."""

from esmpi.data.files import read_rows
from esmpi.data.problem import Example, Prompt
from esmpi.errors import UserError


def with_shots(prompt: Prompt, shots: list[Example]) -> Prompt:
    """Return a prompt with worked examples in front: turns of a conversation, or text with blank lines between."""
    if isinstance(prompt, str):
        return "".join(f"{shot['prompt']}{shot['completion']}\n\n" for shot in shots) + prompt
    system, rest = (prompt[:1], prompt[1:]) if prompt[0]["role"] == "system" else ([], prompt)
    turns = [
        {"role": role, "content": shot[key]}
        for shot in shots
        for role, key in (("user", "prompt"), ("assistant", "completion"))
    ]
    return [*system, *turns, *rest]


def read_shots(source: str | None) -> list[Example]:
    """Return the examples of a file, with `prompt` and `completion`; none without a file.

    Raises
    ------
    UserError
        If it cannot be read, or an example lacks one of them.
    """
    if source is None:
        return []
    rows = read_rows("data.few_shot", source, "train", None)
    for place, row in rows:
        if not all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
            raise UserError(f"data.few_shot: {place}: must have `prompt` and `completion`, both text")
    return [row for _, row in rows]
