"""Messages with calls of tools as OpenAI's interface has them, from and to the texts that a model reads and writes.

A model reads of the tools in the system turn, and writes its calls as text (see `esmpi.tasks.tools`), whatever its chat
template knows of tools.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from esmpi.tasks.tools import call_text, calls_in, without_tool_turns

Schemas = Sequence[Mapping[str, Any]]
FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
"""Fields of a request that are about tools."""


def tools_offered(fields: Mapping[str, Any]) -> Schemas:
    """Return the tools of a request that the model may call.

    Raises
    ------
    ValueError
        If they are not described as OpenAI's interface has it, or a call is demanded.
    """
    offered = fields.get("tools") or []
    if not isinstance(offered, list) or not all(_is_described(tool) for tool in offered):
        raise ValueError(f"tools={reprlib.repr(offered)}: each must have the type `function`, and in `function` a name")
    choice = fields.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise ValueError(
            f"tool_choice={reprlib.repr(choice)} is not supported here: the model cannot be made to call a tool"
        )
    return [] if choice == "none" else offered


def _is_described(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def plain_messages(messages: Any, offered: Schemas = ()) -> list[dict[str, str]]:
    """Return the messages of a request, each with a role and a text, and with the tools that it offers.

    Raises
    ------
    ValueError
        If they are no messages, or there is more to them.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages={reprlib.repr(messages)}: they must be a list with `role` and `content` each")
    return without_tool_turns([{"role": _role(turn), "content": _content(turn)} for turn in messages], offered)


def _role(turn: Any) -> str:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise ValueError(f"messages: {reprlib.repr(turn)} has no `role`")
    if turn.get("function_call"):
        raise ValueError("messages: `function_call` is not supported here: use `tool_calls`")
    return str(turn["role"])


def _content(turn: Mapping[str, Any]) -> str:
    content, calls = turn.get("content"), turn.get("tool_calls")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"messages: the content {reprlib.repr(content)} is no text")
    if not calls:
        return content
    try:
        functions = [call["function"] for call in calls]
        texts = [call_text(function["name"], json.loads(function["arguments"])) for function in functions]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"messages: {reprlib.repr(calls)} are no calls of tools") from None
    return "\n".join([content, *texts] if content else texts)


def choice_of(text: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choice with which a completion answers a request: its message, and why it ended there.

    Parameters
    ----------
    text : str
        The completion.
    request : dict
        Its `messages`, the `tools` that it offers, and whether `parallel_tool_calls` are false.
    """
    found = calls_in(text) if tools_offered(request) else []
    calls = [call for call in found if not isinstance(call, str)]
    if not calls or len(calls) < len(found):  # what is no call is text, as from other servers
        return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if request.get("parallel_tool_calls") is False:
        calls = calls[:1]
    before = sum(len(turn.get("tool_calls") or ()) for turn in request["messages"])
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for number, call in enumerate(calls, before)
    ]
    # a call without tags is all that the model said
    content = text.partition("<tool_call>")[0].strip() if "<tool_call>" in text else ""
    message = {"role": "assistant", "content": content or None, "tool_calls": made}
    return {"index": 0, "message": message, "finish_reason": "tool_calls"}
