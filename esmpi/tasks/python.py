"""A user's own task: a Python file with a reward function, named in the config as `path/to/file.py:function`.

Rewards of three shapes are understood, told apart by the names of their parameters:

- `reward(completion, example) -> float | dict`, esmpi's own; a dict has `reward`, and perhaps `correct`, `parsed` and
  further numbers, which are logged;
- `reward(output, target) -> (label, float)`, as in ES-at-Scale: `target` is the example's column of that name;
- `reward(prompts, completions, **columns) -> list[float]`, as in TRL, called with lists of one.

The file may also have `prompt(example)` (or `template`, the same by another name), which returns the text or chat
messages that the model gets, and `train` and `evaluation`: problems, or functions that return them, for `data.train:
builtin` and `data.eval: builtin`. Problems are objects, or batches (prompts, targets) as a DataLoader gives them.
"""

import importlib.util
import inspect
import json
import reprlib
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from esmpi.errors import UserError, nearest, said
from esmpi.tasks.base import Example, Part, Prompt, Score, Task
from esmpi.tasks.chat import ChatTaskConfig, chat

ENTRY_POINTS = "esmpi.tasks"
"""Group of the entry points by which installed packages offer tasks."""

_DATA: dict[Part, str] = {"train": "train", "eval": "evaluation"}


@dataclass(frozen=True, kw_only=True)
class PythonTaskConfig(ChatTaskConfig):
    """Keys of a task in a Python file."""

    template: str = "{prompt}"
    """Text of a prompt with columns of the example in braces, if the file has no `prompt(example)`."""
    system: str = ""
    """System text, for a chat format."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Several reward functions of the file with their weights; the reward is the weighted sum. Each is logged."""
    correct_from: float = 1.0
    """A completion counts as right, for accuracy, from this reward on, unless the reward function says itself."""


class PythonTask(Task):
    """Examples are what the file's functions take.

    Raises
    ------
    UserError
        If the file cannot be run, or lacks a function.
    """

    name: ClassVar[str] = "file.py:function"
    config_type: ClassVar[type[PythonTaskConfig]] = PythonTaskConfig

    def __init__(self, config: PythonTaskConfig):
        self.config = config
        path, _, function = config.name.rpartition(":")
        self._module = _load_module(path)
        weights = config.rewards or {function: 1.0}
        if function not in weights:
            raise UserError(f"task.rewards: lacks {function!r}, which task.name asks for: give it a weight, too")
        self._rewards = [(name, weight, _as_reward(_function(self._module, name))) for name, weight in weights.items()]
        made = getattr(self._module, "prompt", None) or getattr(self._module, "template", None)
        if made is not None and not callable(made):
            raise UserError(
                f"task.name: `prompt` or `template` in {path} must be a function of an example; text is task.template"
            )
        self._prompt: Callable[[Example], Any] = made or self._fill

    def prompt(self, example: Example) -> Prompt:
        made = self._prompt(example)
        return chat(self.config.chat_format, made, self.config.system) if isinstance(made, str) else made

    def score(self, completion: str, example: Example) -> Score:
        prompt = self.prompt(example)
        parts = {name: reward.compute(prompt, completion, example) for name, _, reward in self._rewards}
        total = float(sum(weight * parts[name]["reward"] for name, weight, _ in self._rewards))
        figures = {key: float(value) for part in parts.values() for key, value in part.items() if key not in _OWN}
        if len(parts) > 1:
            figures |= {name: float(part["reward"]) for name, part in parts.items()}
        verdicts = [bool(part["correct"]) for part in parts.values() if "correct" in part]
        return Score(
            reward=total,
            correct=all(verdicts) if verdicts else total >= self.config.correct_from,
            parsed=all(part.get("parsed", True) for part in parts.values()),
            figures=figures,
        )

    def check(self, example: Example) -> None:
        try:
            made = self._prompt(example)
        except Exception as error:  # the user's own function: whatever it raises is about this example
            raise ValueError(f"no prompt can be made of {reprlib.repr(example)}: {said(error)}") from None
        messages = isinstance(made, list) and all(
            isinstance(one, dict) and {"role", "content"} <= one.keys() for one in made
        )
        if not made or not (isinstance(made, str) or messages):
            raise ValueError(f"the prompt of {reprlib.repr(example)} is {reprlib.repr(made)}, not text or messages")
        for name, _, reward in self._rewards:
            missing = sorted(reward.columns - example.keys())
            if missing:
                raise ValueError(f"{name} wants a column {missing[0]!r}{nearest(missing[0], example)}")

    def key(self, example: Example) -> Hashable:
        return json.dumps(example, sort_keys=True, default=str)

    def problems(self, part: Part) -> list[Example]:
        found = getattr(self._module, _DATA[part], None)
        if found is None:
            raise ValueError(f"{self._module.__file__} has no `{_DATA[part]}`: give a file as data.{part}")
        try:
            examples = list(_examples(found() if callable(found) else found))
            json.dumps(examples)  # they go into files and between processes
        except Exception as error:  # the user's own function, or what it returned
            raise ValueError(f"`{_DATA[part]}` of {self._module.__file__}: {said(error)}") from error
        return examples

    def _fill(self, example: Example) -> str:
        try:
            return self.config.template.format_map(example)
        except KeyError as error:
            raise ValueError(
                f"task.template wants a column {error}{nearest(str(error.args[0]), list(example))}"
            ) from None


_OWN = ("reward", "correct", "parsed")


@dataclass(frozen=True)
class _Reward:
    """A reward function of any shape."""

    compute: Callable[[Prompt, str, Example], Mapping[str, Any]]
    """Returns numbers by name, from prompt, completion and example."""
    columns: frozenset[str] = frozenset()
    """What it wants of an example."""


def find_python_task(name: str) -> type[Task] | None:
    """Return the task of a name such as `file.py:function` or of an installed entry point; None if it is neither."""
    if name.rpartition(":")[0].endswith(".py"):
        return PythonTask
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            task = entry.load()
        except Exception as error:  # whatever the package raises
            raise UserError(
                f"task.name: the entry point {name} of {ENTRY_POINTS} cannot be loaded: {said(error)}"
            ) from error
        if not (inspect.isclass(task) and issubclass(task, Task)):
            raise UserError(
                f"task.name: the entry point {name} of {ENTRY_POINTS} is not a subclass of esmpi.tasks.Task"
            )
        return task
    return None


def _load_module(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        names = [str(entry) for entry in Path(path).parent.glob("*.py")]
        raise UserError(f"task.name: no file {path}{nearest(path, names)}")
    spec = importlib.util.spec_from_file_location(f"esmpi_task_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # as for a script: what lies beside it can be imported
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[spec.name] = module  # as for any module: dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"task.name: {path} cannot be run: {said(error)}") from error
    return module


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(f"task.name: {module.__file__} has no function {name!r}{nearest(name, there)}")
    return function


def _as_reward(function: Callable[..., Any]) -> _Reward:
    parameters = inspect.signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    wanted = [name for name in names if parameters[name].default is inspect.Parameter.empty]
    takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters.values())

    def of_trl(prompt: Prompt, completion: str, example: Example) -> Mapping[str, Any]:
        answer = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        columns = {key: [value] for key, value in example.items() if key != "prompt"}
        columns |= {"prompts": [prompt], "completions": [answer]}
        rewards = function(**{key: value for key, value in columns.items() if takes_all or key in names})
        if len(rewards) != 1:
            raise ValueError(f"{len(rewards)} rewards for 1 completion")
        return {"reward": rewards[0]}

    def of_es_at_scale(prompt: Prompt, completion: str, example: Example) -> Mapping[str, Any]:
        _, reward = function(completion, example["target"])
        return {"reward": reward}

    def of_esmpi(prompt: Prompt, completion: str, example: Example) -> Mapping[str, Any]:
        result = function(completion, example)
        return result if isinstance(result, Mapping) else {"reward": result}

    if "completions" in names:
        return _Reward(of_trl, frozenset(wanted) - {"prompts", "completions"})
    if len(wanted) <= 2 <= len(names):
        return _Reward(of_es_at_scale, frozenset({"target"})) if names[1] == "target" else _Reward(of_esmpi)
    raise UserError(
        f"task.name: {getattr(function, '__name__', function)}({', '.join(parameters)}) is no reward: it must be "
        f"(completion, example), (output, target), or (prompts, completions, **columns)"
    )


def _examples(found: Iterable[Any]) -> Iterable[Example]:
    for one in found:
        if isinstance(one, Mapping):
            if isinstance(one.get("prompt"), list | tuple) and all(isinstance(text, str) for text in one["prompt"]):
                raise ValueError("a batch of objects: give the objects themselves, or batches (prompts, targets)")
            yield dict(one)
        elif isinstance(one, tuple | list) and len(one) == 2:
            prompts, targets = one
            for prompt, target in zip(prompts, targets, strict=True):
                yield {"prompt": prompt, "target": target.item() if hasattr(target, "item") else target}
        else:
            raise ValueError(f"a problem is an object or a batch (prompts, targets), not {reprlib.repr(one)}")
