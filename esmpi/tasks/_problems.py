"""The problems that a user's file has: `train` and `evaluation`, or functions that return them."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from esmpi.data.problem import Example, Part
from esmpi.errors import said

_NAMES: dict[Part, str] = {"train": "train", "eval": "evaluation"}


def problems_of(module: ModuleType, part: Part) -> list[Example]:
    """Return the problems of a part that a file has.

    Raises
    ------
    ValueError
        If it has none, or others than objects and batches (prompts, targets).
    """
    found = getattr(module, _NAMES[part], None)
    if found is None:
        raise ValueError(f"{module.__file__} has no `{_NAMES[part]}`: give a file as data.{part}")
    try:
        examples = list(_examples(found() if callable(found) else found))
        json.dumps(examples)  # they go into files and between processes
    except Exception as error:  # the user's own function, or what it returned
        raise ValueError(f"`{_NAMES[part]}` of {module.__file__}: {said(error)}") from error
    return examples


def _examples(found: Iterable[Any]) -> Iterable[Example]:
    for problem in found:
        if isinstance(problem, Mapping):
            if isinstance(problem.get("prompt"), list | tuple) and all(
                isinstance(text, str) for text in problem["prompt"]
            ):
                raise ValueError("a batch of objects: give the objects themselves, or batches (prompts, targets)")
            yield dict(problem)
        elif isinstance(problem, tuple | list) and len(problem) == 2:
            prompts, targets = problem
            for prompt, target in zip(prompts, targets, strict=True):
                yield {"prompt": prompt, "target": target.item() if hasattr(target, "item") else target}
        else:
            raise ValueError(f"a problem is an object or a batch (prompts, targets), not {reprlib.repr(problem)}")
