"""Reward functions of any shape, told apart by the names of their parameters: see `esmpi.tasks.python`."""

import asyncio
import copy
import inspect
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esmpi.data.problem import Example, Prompt
from esmpi.errors import UserError
from esmpi.tasks.base import Progress
from esmpi.tasks.calls import Calls, is_async
from esmpi.wording import counted

Part = Mapping[str, Any]
"""What a reward function says of a completion: numbers by name, among them `reward`."""

_TARGETS = ("target", "gt_answer", "gt", "answer", "ground_truth", "solution", "label", "reference")
"""By what second parameter a reward in the shape of ES-at-Scale is known."""
_OF_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
"""What TRL passes besides the columns."""


@dataclass(frozen=True)
class Row:
    """A completion, as reward functions get it."""

    prompt: Prompt
    completion: str
    example: Example
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainerState:
    """Stands in for the `trainer_state` of transformers, with what a run of esmpi has of it."""

    global_step: int
    """Generation of theta."""
    max_steps: int
    """Length of the run, or that of its schedules."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has global_step and max_steps in esmpi, and no {name}")


@dataclass
class Sheet:
    """Completions that are scored together, and what rewards say of them besides."""

    rows: Sequence[Row]
    progress: Progress
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """What `log_metric` was called with."""
    notes: dict[str, list[Any]] = field(default_factory=dict)
    """What `log_extra` was called with: a value for each row."""

    def log_metric(self, name: str, value: float) -> None:
        """Log a number of the whole sheet. The mean counts if there are several under a name."""
        known = number(f"the metric {name}", value)
        self.metrics.setdefault(name, []).append(known)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Record a value for each completion."""
        if len(values) != len(self.rows):
            raise ValueError(
                f"log_extra: {column} has {counted(len(values), 'value')} for {counted(len(self.rows), 'completion')}"
            )
        self.notes[column] = json.loads(json.dumps(list(values), default=str))

    def columns(self) -> dict[str, Any]:
        """Return what TRL passes to a reward, by parameter; the rows' own things stay as they are."""
        rows = self.rows
        examples = [copy.deepcopy(row.example) for row in rows]
        names = dict.fromkeys(name for example in examples for name in example if name != "prompt")
        columns: dict[str, Any] = {name: [example.get(name) for example in examples] for name in names}
        prompts = [row.prompt if isinstance(row.prompt, str) else copy.deepcopy(row.prompt) for row in rows]
        completions = [
            row.completion if isinstance(row.prompt, str) else [{"role": "assistant", "content": row.completion}]
            for row in rows
        ]
        state = TrainerState(self.progress.generation, self.progress.num_generations)
        columns |= {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": [list(row.tokens) for row in rows],
        }
        return columns | {"trainer_state": state, "log_metric": self.log_metric, "log_extra": self.log_extra}


@dataclass(frozen=True)
class Reward:
    """A reward function of any shape."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[Row], tuple[Any, ...]] | None = None
    """The arguments for one completion; None if the function takes lists."""
    columns: Callable[[Sheet], Mapping[str, Any]] | None = None
    """The arguments for a list of completions, by name."""
    needs: tuple[tuple[str, ...], ...] = ()
    """Columns that it needs: one of each of these groups of names."""
    needs_tokens: bool = False

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return is_async(self.function)

    async def compute_async(self, sheet: Sheet, call: Calls) -> list[Part | BaseException]:
        """Do as `compute` does, with concurrent calls of a coroutine function."""
        if self.columns is None:
            return list(await asyncio.gather(*(self._called(row, call) for row in sheet.rows)))
        columns = self.columns
        try:
            return self._of_list(await self._result(lambda: self.function(**columns(sheet)), call), sheet)
        except BaseException as error:
            return [_explained(error, sheet)] * len(sheet.rows)

    async def _called(self, row: Row, call: Calls) -> Part | BaseException:
        assert self.arguments is not None
        arguments = self.arguments
        try:
            return self._checked(await self._result(lambda: self.function(*arguments(row)), call))
        except BaseException as error:
            return error

    async def _result(self, function: Callable[[], Any], call: Calls) -> Any:
        """Return what the function returns, or what its coroutine does, if it is a plain one that returns one."""
        if self.is_async:
            return await call(function)
        result = function()
        if not inspect.isawaitable(result):
            return result
        first = [result]
        return await call(lambda: first.pop() if first else function())

    def compute(self, sheet: Sheet) -> list[Part | BaseException]:
        """Return what the function says of each completion, or what it raised."""
        if self.columns is None:
            return [_caught(self._call, row) for row in sheet.rows]
        try:
            return self._of_list(_awaited(self.function(**self.columns(sheet))), sheet)
        except BaseException as error:  # a reward may raise anything: here it costs all that it gets at once
            return [_explained(error, sheet)] * len(sheet.rows)

    def _call(self, row: Row) -> Part:
        assert self.arguments is not None
        return self._checked(_awaited(self.function(*self.arguments(row))))

    def _of_list(self, result: Any, sheet: Sheet) -> list[Part | BaseException]:
        try:
            rewards = list(result)
        except TypeError:
            raise TypeError(
                f"{self.name} must return a list with a reward for each completion, not {reprlib.repr(result)}"
            ) from None
        if len(rewards) != len(sheet.rows):
            raise ValueError(
                f"{self.name} returned {counted(len(rewards), 'reward')} for {counted(len(sheet.rows), 'completion')}: "
                f"it must return one for each"
            )
        return [_caught(self._checked, reward) for reward in rewards]

    def _checked(self, result: Any) -> Part:
        part = _by_name(result)
        if "reward" not in part:
            raise TypeError(f"{self.name} returned {reprlib.repr(dict(part))}, which has no `reward`")
        reward = part["reward"]
        return {**part, "reward": None if reward is None else number(f"the reward of {self.name}", reward)}


def as_reward(function: Callable[..., Any], name: str) -> Reward:
    """Return a function of a file as a reward.

    Raises
    ------
    UserError
        If its parameters are not those of a reward.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # functions written in C may have no signature
        raise UserError(f"task.name: {name} does not say what its parameters are: put a function around it") from None
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = [name for name, parameter in parameters.items() if parameter.kind not in variadic]
    wanted = [name for name in names if parameters[name].default is inspect.Parameter.empty]
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())

    def of_trl(sheet: Sheet) -> Mapping[str, Any]:
        return {key: value for key, value in sheet.columns().items() if takes_all or key in names}

    def of_lists(sheet: Sheet) -> Mapping[str, Any]:
        examples = [copy.deepcopy(row.example) for row in sheet.rows]
        return {"completions": [row.completion for row in sheet.rows], "examples": examples}

    def with_prompt(row: Row) -> tuple[Any, ...]:
        return copy.deepcopy(row.prompt), row.completion, copy.deepcopy(row.example)

    def of_es_at_scale(row: Row) -> tuple[Any, ...]:
        return row.completion, copy.deepcopy(row.example[names[1] if names[1] in row.example else "target"])

    def of_esmpi(row: Row) -> tuple[Any, ...]:
        # a copy: what a reward does to its example must not reach the next completion's
        return row.completion, copy.deepcopy(row.example)

    if not inspect.isclass(function):
        if {"completions", "examples"} <= set(names) and set(wanted) <= {"completions", "examples"}:
            return Reward(name, function, columns=of_lists)
        if {"prompts", "completions", "completion_ids"} & set(names):
            needs = tuple((column,) for column in wanted if column not in _OF_TRL)
            needs_tokens = takes_all or "completion_ids" in names
            return Reward(name, function, columns=of_trl, needs=needs, needs_tokens=needs_tokens)
    by_position = [name for name in names if parameters[name].kind != inspect.Parameter.KEYWORD_ONLY]
    if by_position[:3] == ["prompt", "completion", "example"] and len(wanted) <= 3:
        return Reward(name, function, with_prompt)
    if len(wanted) <= 2 <= len(by_position) and not inspect.isclass(function):
        if names[1] not in _TARGETS:
            return Reward(name, function, of_esmpi)
        return Reward(name, function, of_es_at_scale, needs=(tuple(dict.fromkeys(("target", names[1]))),))
    what = "a class, not a function" if inspect.isclass(function) else "no reward"
    raise UserError(
        f"task.name: {name}({', '.join(parameters)}) is {what}: it must be "
        f"(completion, example), (completions, examples), (output, target), or (prompts, completions, **columns)"
    )


def number(what: str, value: Any) -> float:
    """Return a value as a number; raise TypeError, which says `what` it is, if it is none."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{what} is {reprlib.repr(value)}, not a number") from None


def _awaited(result: Any) -> Any:
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _explained(error: BaseException, sheet: Sheet) -> BaseException:
    """Return the error of a reward over lists, with advice if the reward expects completions of the other form."""
    if not isinstance(error, TypeError):
        return error
    are_texts, words = isinstance(sheet.rows[0].prompt, str), str(error)
    if are_texts and words.startswith("string indices must be integers"):
        advice = "completions are texts, as prompts are. A reward for messages needs task.chat_format=model"
    elif not are_texts and words.startswith("expected string or bytes-like object"):
        advice = (
            "each completion is a list with one message, as prompts are messages. A reward for texts needs prompts "
            "that are texts, and task.chat_format=none"
        )
    else:
        return error
    return TypeError(f"{words}: {advice}").with_traceback(error.__traceback__)


def _caught(function: Callable[[Any], Part], argument: Any) -> Part | BaseException:
    try:
        return function(argument)
    except BaseException as error:  # a reward may raise anything: it costs one completion
        return error


def _by_name(result: Any) -> Part:
    """Return what a reward function returned as numbers by name: it may be a number, a dict, or (label, number)."""
    if isinstance(result, Mapping):
        return result
    if not (isinstance(result, tuple) and len(result) == 2):
        return {"reward": result}
    label, reward = result
    if not isinstance(label, Mapping):
        return {"reward": reward}
    numbers = {key: value for key, value in label.items() if isinstance(value, int | float)}
    return {"parsed": bool(label.get("formatted", True))} | numbers | {"reward": reward}
