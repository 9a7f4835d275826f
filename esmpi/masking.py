"""Secrets in texts and configs: tokens, keys and passwords, which nothing that is kept or shown may hold.

What counts as a secret: the value of a key that is called one, the user's part of a URL, a text of the form that hubs
give their tokens, and the value of an environment variable that is called a secret, wherever it stands.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "<secret>"

_SECRET = re.compile(
    r"(?i)(?:(?:^|[_\W])(?:token|(?:api|access|secret|private)_?keys?|secret|auth|authorization|credentials?|jwt)"
    r"|passw(?:or)?d|passphrase|_pass|_pwd)$"
)
_NO_SECRET = re.compile(r"(?i)(?:^|[_\W])(?:[be]os|pad|unk|sep|cls|mask|stop|start|end|image|special)_token$")
_VALUE = r"""['"]?\s*[:=]\s*(?P<value>"[^"\n]+"|'[^'\n]+'|\[[^\]\n]+\]|[^\s'",}&\[]+)"""
"""A quoted text, which may hold blanks and commas, a list, or a word."""
_TEXTS = (
    re.compile(r"""(?<=://)[^/\s@'"]+(?=@)"""),
    re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    # in a word of the command line, such as engine.vllm_args={"hf_token": "..."}
    re.compile(
        r"(?i)(?:(?:hf|auth|access|refresh)_token|(?:api|access|secret|private)[_-]?key|passw(?:or)?d)" + _VALUE
    ),
    re.compile(r"""(?i)(?<=[{,.])\s*['"]?(?:token|secret|auth)""" + _VALUE),
    # in the address of a file, as hubs and clouds sign them, and in the head of a request
    re.compile(
        r"(?i)(?<=[?&])(?:x-amz-(?:signature|security-token)|signature|sig|token|secret|auth)=(?P<value>[^\s'\"&]+)"
    ),
    re.compile(r"(?i)(?<=authorization: basic )[A-Za-z0-9+/=]+"),
)
_LEAST_CHARACTERS = 8
"""Of the value of an environment variable that is looked for in other texts."""


def names_a_secret(name: str) -> bool:
    """Return whether the value of a key or variable of this name is a secret."""
    # of camel case, too: apiKey
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return _SECRET.search(parted) is not None and _NO_SECRET.search(parted) is None


def masked_text(text: str) -> str:
    """Return a text with `MASK` in place of its secrets."""
    for name in list(os.environ):
        value = os.environ.get(name, "")  # another thread may just have removed it
        if len(value) >= _LEAST_CHARACTERS and names_a_secret(name):
            text = text.replace(value, MASK)
    for pattern in _TEXTS:
        text = pattern.sub(_mask, text)
    return text


def masked(value: Any) -> Any:
    """Return a tree of JSON types with `MASK` in place of its secrets; what holds none is equal to what it was."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Mapping):
        return {key: _all_masked(item) if names_a_secret(str(key)) else masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def _all_masked(value: Any) -> Any:
    """Return a value that is called a secret with `MASK` in place of its texts and numbers; None and booleans stay."""
    if isinstance(value, Mapping):
        return {key: _all_masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_masked(item) for item in value]
    return value if isinstance(value, bool | None) or value == "" else MASK


def secrets_in(tree: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the keys of a config that hold secrets, or that have lost them, as `section.key`."""
    return [
        f"{section}.{key}"
        for section, keys in tree.items()
        for key, value in keys.items()
        if _plain(value) != masked(value) or MASK in str(value)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _mask(found: re.Match[str]) -> str:
    if "value" not in found.re.groupindex:
        return MASK
    start = found.start("value") - found.start()
    quote = found["value"][0] if found["value"][0] in "'\"" else ""
    return f"{found[0][:start]}{quote}{MASK}{quote}"
