"""Prompts in the form that a chat model was tuned on: by the model's own template, or that of a family, as text.

The beginning-of-text token is not part of the text: tokenizers add it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from esmpi.config.keys import key, require
from esmpi.config.sections import TaskConfig
from esmpi.data.problem import Prompt

ChatFormat = Literal["none", "model", "chatml", "llama3", "gemma"]


@dataclass(frozen=True, kw_only=True)
class ChatTaskConfig(TaskConfig):
    """Keys of the tasks whose prompt can be put in a chat form."""

    chat_format: ChatFormat = "none"
    """Form of the prompt. none: raw text. model: the model's own chat template. chatml (Qwen), llama3, gemma: fixed
    forms."""
    chat_template_kwargs: dict[str, Any] = key(factory=dict)
    """Variables for the model's own chat template, such as `enable_thinking: false`. Needs `chat_format: model`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.chat_template_kwargs.keys()
        require(
            not given or self.chat_format == "model",
            "chat_template_kwargs: are for the model's own chat template: set task.chat_format=model, too",
        )
        own = sorted(given & {"messages", "conversation", "tokenize", "add_generation_prompt"})
        require(not own, f"chat_template_kwargs: {', '.join(own)}: esmpi sets this itself")


def chat(form: ChatFormat, user: str, system: str = "") -> Prompt:
    """Return the prompt for a user's message, up to where the model's reply starts.

    Without a system turn of its own (`none`, `gemma`), the system text stands in front of the message.
    """
    if form == "model":
        turns = [{"role": "system", "content": system}] * bool(system)
        return [*turns, {"role": "user", "content": user}]
    joined = f"{system}\n\n{user}" if system else user
    if form == "chatml":
        before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        return f"{before}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    if form == "llama3":
        said = [("system", system)] * bool(system) + [("user", user)]
        written = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in said)
        return f"{written}<|start_header_id|>assistant<|end_header_id|>\n\n"
    if form == "gemma":
        return f"<start_of_turn>user\n{joined}<end_of_turn>\n<start_of_turn>model\n"
    return joined


def reply(form: ChatFormat, user: str) -> str:
    """Return what stands between a model's reply and its next one in a conversation that is a text: a user's message.

    With the form `none`, that is the message on lines of its own.
    """
    if form == "chatml":
        return f"<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    if form == "llama3":
        return (
            f"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
    if form == "gemma":
        return f"<end_of_turn>\n<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n"
    return f"\n{user}\n"
