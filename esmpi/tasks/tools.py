"""Tools: Python functions that a model may call in a conversation.

Calls are read in the two forms that most models write: JSON with `name` and `arguments` between <tool_call> tags
(Hermes, Qwen), or alone, with `arguments` or `parameters` (Llama 3).
"""

from __future__ import annotations

import inspect
import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esmpi.errors import UserError, said
from esmpi.tasks.answers import MAX_TAGGED_TEXT
from esmpi.tasks.environments.base import Environment

Call = Mapping[str, Any] | str
"""`name` and `arguments` of a call; or what is wrong with it."""

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LONGEST_RESULT = 10_000
"""Characters of a result that the model gets to see."""
MAX_CALLS = 100
"""Calls in a completion; of more, none is made."""
_INSTRUCTION = """You may call functions. These are their signatures, one in each line:
<tools>
{schemas}
</tools>

To call one, write a JSON object with its name and arguments between tags, and nothing after it:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


def schemas(functions: Sequence[Callable[..., Any]]) -> list[dict[str, Any]]:
    """Return the JSON schemas of functions, from their type hints and docstrings.

    Raises
    ------
    UserError
        If a function lacks a hint or a description.
    """
    if not functions:
        return []
    from transformers.utils import get_json_schema

    made = []
    for function in functions:
        if inspect.iscoroutinefunction(function):
            raise UserError(f"tools: {function.__name__} is a coroutine: make it an ordinary function")
        try:
            made.append(get_json_schema(_without_self(function)))
        except Exception as error:  # transformers has several kinds of them
            raise UserError(
                f"tools: {getattr(function, '__name__', function)} cannot be described: {said(error)}"
            ) from None
    return made


def described(made: Sequence[Mapping[str, Any]]) -> str:
    """Return text that tells a model of functions, for models whose chat template does not."""
    return _INSTRUCTION.format(schemas="\n".join(json.dumps(schema) for schema in made)) if made else ""


def calls_in(completion: str) -> list[Call]:
    """Return the calls in a completion."""
    texts = _CALL.findall(completion[-MAX_TAGGED_TEXT:])
    if len(texts) > MAX_CALLS:
        return [f"there are {len(texts)} calls, more than {MAX_CALLS}, and none of them was made"]
    if texts:
        return [_read(text) for text in texts]
    alone = completion.strip().removeprefix("<|python_tag|>")
    if alone.startswith("{") and len(alone) <= MAX_TAGGED_TEXT and isinstance(call := _read(alone), Mapping):
        return [call]
    return []


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the text of a call."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def result_of(environment: Environment, call: Call) -> str:
    """Call a tool of an environment; return its result as text, or in place of it what went wrong, for the model."""
    # an error may quote what the model wrote, of any length, and half a character, which is no text
    text = _result_of(environment, call).encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_RESULT else text[:_LONGEST_RESULT] + " ..."


def _result_of(environment: Environment, call: Call) -> str:
    if isinstance(call, str):
        return f"error: {call}"
    functions = {function.__name__: function for function in environment.tools}
    function = functions.get(call["name"])
    if function is None:
        return f"error: there is no function {reprlib.repr(call['name'])}; there are {', '.join(functions)}"
    first = [environment] if _takes_self(function) else []
    try:
        bound = inspect.signature(function).bind(*first, **call["arguments"])
    except TypeError as error:
        return f"error: {error}"
    try:
        result = function(*bound.args, **bound.kwargs)
    except Exception as error:  # of whatever kind: the model may do better next time
        return f"error: {said(error)}"
    try:
        text = result if isinstance(result, str) else json.dumps(result)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"error: the result of {call['name']} is no text: {said(error)}"
    return text


def response(result: str) -> str:
    """Return a result as text between tags, for conversations in which tools have no turns of their own."""
    return f"<tool_response>\n{result}\n</tool_response>"


def without_tool_turns(
    messages: Sequence[Mapping[str, str]], made: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return messages for a chat template that knows no tools.

    The system turn tells of the tools, whose schemas are `made`, if there are any, and users give their results.
    """
    turns = [
        {"role": "user", "content": response(turn["content"])} if turn["role"] == "tool" else dict(turn)
        for turn in messages
    ]
    text = described(made)
    if not text:
        return turns
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    return [{"role": "system", "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]


def _read(text: str) -> Call:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"the call is no JSON: {error}"
    if not isinstance(found, dict):
        return "the call is no JSON object"
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(found.get("name"), str) or not isinstance(arguments, dict):
        return "the call has no `name`, or `arguments` that are no object"
    return {"name": found["name"], "arguments": arguments}


def _takes_self(function: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(function).parameters), "") == "self"


def _without_self(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as the model sees it: a method of an environment without its first argument."""
    if not _takes_self(function):
        return function

    def seen() -> None:
        raise NotImplementedError

    seen.__name__, seen.__doc__ = function.__name__, function.__doc__
    seen.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "self"}
    signature = inspect.signature(function)
    # a function's type does not know the attribute that `inspect.signature` reads
    vars(seen)["__signature__"] = signature.replace(parameters=list(signature.parameters.values())[1:])
    return seen
