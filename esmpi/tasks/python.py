"""A user's own task: a Python file with a reward function, named in the config as `path/to/file.py:function`.

Rewards of four shapes are understood, told apart by the names of their parameters. Each may be a coroutine function.

- `reward(completion, example) -> float | dict`, esmpi's own; a dict has `reward`, and perhaps `correct`, `parsed` and
  further numbers, which are logged; `reward(prompt, completion, example)` also gets what the model completed;
- `reward(completions, examples) -> list`, the same for several completions at once;
- `reward(output, target) -> (label, float)`, as in ES-at-Scale: `target` is the example's column of that name, and the
  parameter may also be called `gt_answer`, `answer`, ...; of a label that is a dict the numbers are logged;
- `reward(prompts, completions, **columns) -> list of float`, as in TRL, with `completion_ids`, `trainer_state`,
  `log_metric` and `log_extra` for those that take them.

Those that take lists get what `task.reward_scope` says. A reward that is None does not apply to the completion and
counts for nothing; a completion to which no reward applies is left out.

The file may also have `prompt(example)`, which returns the text or chat messages that the model gets, or, as in
ES-at-Scale, `template(text)`, which makes it of the example's `prompt`; `answer(completion, example)`, which returns
the completion's answer as text in one form, or None, if completions are to vote; and `train` and `evaluation`:
problems, or functions that return them, for `data.train: builtin` and `data.eval: builtin`. Problems are objects, or
batches (prompts, targets) as a DataLoader gives them.
"""

import asyncio
import copy
import inspect
import json
import math
import re
import reprlib
import string
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from esmpi import plugins
from esmpi.data.problem import Example, Part, Prompt
from esmpi.errors import UserError, nearest, said
from esmpi.tasks._problems import problems_of
from esmpi.tasks._rewards import Part as RewardPart
from esmpi.tasks._rewards import Row, Sheet, as_reward, number
from esmpi.tasks.base import Progress, Sample, Scope, Score, Task
from esmpi.tasks.calls import Calls
from esmpi.tasks.chat import ChatTaskConfig, chat

_WHOLE_PROMPT = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class PythonTaskConfig(ChatTaskConfig):
    """Keys of a task in a Python file."""

    template: str = _WHOLE_PROMPT
    """Text of a prompt with columns of the example in braces, if the file has no `prompt(example)`; braces that are
    text are doubled. A column alone, in braces, may hold chat messages."""
    system: str = ""
    """System text, for a chat format."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Several reward functions of the file with their weights; the reward is the weighted sum. Each is logged."""
    reward_scope: Scope = "batch"
    """What a reward that takes lists gets at once. batch: all completions of a member, and in evaluations those of
    `data.batch_size` problems. group: all completions of a prompt. completion: one, so that a reward that fails costs
    one completion."""
    correct_from: float = 1.0
    """A completion counts as right, for accuracy, from this reward on, unless the reward function says itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.rewards.items():
            if not math.isfinite(weight):
                raise ValueError(f"rewards: {name}: {weight} is no weight")


class PythonTask(Task):
    """Examples are what the file's functions take.

    Raises
    ------
    UserError
        If the file cannot be run, or lacks a function.
    """

    name: ClassVar[str] = "file.py:function"
    config_type: ClassVar[type[PythonTaskConfig]] = PythonTaskConfig

    def __init__(self, config: PythonTaskConfig, source: bytes = b""):
        """Run the file, or in its place `source`, which another process has read from it."""
        self.config = config
        path, _, function = config.name.rpartition(":")
        self.source = source or plugins.source_of("task.name", path)
        self._module = plugins.execute_file("task.name", path, self.source)
        weights = config.rewards or {function: 1.0}
        if function not in weights:
            raise UserError(f"task.rewards: lacks {function!r}, which task.name asks for: give it a weight, too")
        self._weights = weights
        self._rewards = [as_reward(_function(self._module, name), name) for name in weights]
        self._prompt = self._find_prompt()
        takes_lists = any(reward.columns is not None for reward in self._rewards)
        if config.reward_scope != "batch" and not takes_lists:
            raise UserError(f"task.reward_scope: has no effect: no reward of {self._module.__file__} takes lists")
        self.scope = config.reward_scope if takes_lists else "completion"
        self.needs_tokens = any(reward.needs_tokens for reward in self._rewards)
        self.is_async = any(reward.is_async for reward in self._rewards)

    @classmethod
    def goes_by(cls, name: str) -> bool:
        return plugins.names_a_file(name)

    @classmethod
    def make(cls, config: PythonTaskConfig, source: bytes) -> Task:
        return cls(config, source)

    @property
    def has_answers(self) -> bool:
        return callable(getattr(self._module, "answer", None))

    def answer(self, completion: str, example: Example) -> str | None:
        answer = self._module.answer(completion, copy.deepcopy(example))
        if not isinstance(answer, str | None):
            raise TypeError(f"`answer` returned {reprlib.repr(answer)}, which is neither text nor None")
        return answer

    def _find_prompt(self) -> Callable[[Example], Any]:
        prompt: Any = getattr(self._module, "prompt", None)
        template: Any = getattr(self._module, "template", None) if prompt is None else None
        if prompt is template is None:
            return self._fill
        if not callable(prompt or template):
            raise UserError(
                f"task.name: `prompt` or `template` in {self._module.__file__} must be a function; text is for "
                f"task.template"
            )
        if self.config.template != _WHOLE_PROMPT:
            raise UserError(
                f"task.template: {self._module.__file__} has a function that makes the prompt: leave one of them out"
            )
        return prompt or (lambda example: template(example["prompt"]))

    def prompt(self, example: Example) -> Prompt:
        made, config = self._prompt(example), self.config
        if isinstance(made, str):
            return chat(config.chat_format, made, config.system)
        return [*([{"role": "system", "content": config.system}] if config.system else []), *made]

    def score(self, completion: str, example: Example) -> Score:
        [score] = self.score_together([Sample(completion=completion, example=example)], Progress())
        if isinstance(score, BaseException):
            raise score
        return score

    def score_together(self, samples: Sequence[Sample], progress: Progress) -> list[Score | BaseException]:
        sheet = self._sheet(samples, progress)
        return self._scores(sheet, [reward.compute(sheet) for reward in self._rewards])

    async def score_async(
        self, samples: Sequence[Sample], progress: Progress, call: Calls
    ) -> list[Score | BaseException]:
        sheet = self._sheet(samples, progress)
        return self._scores(sheet, await asyncio.gather(*(one.compute_async(sheet, call) for one in self._rewards)))

    def prepare(self) -> None:
        for reward in self._rewards:
            prepare = getattr(reward.function, "prepare", None)
            if callable(prepare):
                prepare()

    def _sheet(self, samples: Sequence[Sample], progress: Progress) -> Sheet:
        rows = [Row(self.prompt(one.example), one.completion, one.example, one.tokens) for one in samples]
        return Sheet(rows, progress)

    def _scores(
        self, sheet: Sheet, parts: Sequence[Sequence[RewardPart | BaseException]]
    ) -> list[Score | BaseException]:
        """Return the score of each row from what each reward says of it; an error if one of them has failed."""
        metrics = {name: math.fsum(values) / len(values) for name, values in sheet.metrics.items()}
        scores: list[Score | BaseException] = []
        for place, its in enumerate(zip(*parts, strict=True)):
            notes = {column: values[place] for column, values in sheet.notes.items()}
            failed = next((part for part in its if isinstance(part, BaseException)), None)
            if failed is not None:
                scores.append(failed)
                continue
            try:
                by_name = dict(zip(self._weights, its, strict=True))
                scores.append(self._put_together(by_name, metrics, notes))
            except Exception as error:
                scores.append(error)
        return scores

    def _put_together(self, parts: Mapping[str, Any], metrics: Mapping[str, float], notes: Mapping[str, Any]) -> Score:
        rewards: dict[str, float] = {name: part["reward"] for name, part in parts.items() if part["reward"] is not None}
        total = float(sum(self._weights[name] * reward for name, reward in rewards.items())) if rewards else None
        figures = {
            str(key): number(f"`{key}` of {name}", value)
            for name, part in parts.items()
            for key, value in part.items()
            if key not in _OWN
        }
        if len(parts) > 1:
            figures |= rewards
        verdicts = [_verdict(f"`correct` of {name}", p["correct"]) for name, p in parts.items() if "correct" in p]
        return Score(
            reward=total,
            correct=all(verdicts) if verdicts else total is not None and total >= self.config.correct_from,
            parsed=all(_verdict(f"`parsed` of {name}", part.get("parsed", True)) for name, part in parts.items()),
            figures={**figures, **metrics},
            notes=notes,
        )

    def check(self, example: Example) -> None:
        try:
            made = self._prompt(example)
        except Exception as error:  # the user's own function: whatever it raises is about this example
            raise ValueError(f"no prompt can be made of {reprlib.repr(example)}: {said(error)}") from None
        messages = isinstance(made, list) and all(
            isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
            for turn in made
        )
        if not made or not (isinstance(made, str) or messages):
            raise ValueError(f"the prompt of {reprlib.repr(example)} is {reprlib.repr(made)}, not text or messages")
        if messages and self.config.chat_format not in ("none", "model"):
            raise ValueError(
                f"the prompt is messages, which go through the model's own chat template: task.chat_format "
                f"{self.config.chat_format} is for text; choose model"
            )
        if messages and self.config.system and made[0]["role"] == "system":
            raise ValueError("the prompt has a system turn of its own: leave task.system out")
        for reward in self._rewards:
            for columns in reward.needs:
                if not any(column in example for column in columns):
                    raise ValueError(f"{reward.name} needs a column {columns[0]!r}{nearest(columns[0], example)}")

    def key(self, example: Example) -> Hashable:
        return json.dumps(example, sort_keys=True, default=str)

    def problems(self, part: Part) -> list[Example]:
        return problems_of(self._module, part)

    def _fill(self, example: Example) -> Any:
        template = self.config.template
        alone = re.fullmatch(r"\{(\w+)\}", template)
        if alone and isinstance(example.get(alone[1]), list):
            return example[alone[1]]  # chat messages
        braces = "braces that are text are doubled: {{ and }}"
        try:
            columns = [re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(template) if name]
            empty = [column for column in columns if column in example and example[column] is None]
            text = template.format_map(example)
        except KeyError as error:
            raise ValueError(
                f"task.template needs a column {error}{nearest(str(error.args[0]), list(example))}"
                + (f"; {braces}" if template != _WHOLE_PROMPT else "")
            ) from None
        except (ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"task.template: {error}; {braces}") from None
        if empty:
            raise ValueError(f"column {empty[0]!r} is empty")
        return text


_OWN = ("reward", "correct", "parsed")


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(f"task.name: {module.__file__} has no function {name!r}{nearest(name, there)}")
    return function


def _verdict(what: str, value: Any) -> bool:
    if isinstance(value, str | bytes):  # because "no" would be true
        raise TypeError(f"{what} is {reprlib.repr(value)}, not true or false")
    return bool(value)
