"""Changes to a config: `section.key=value` on a command line, or values from Python."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from esmpi.errors import UserError

Sections = Mapping[str, Mapping[str, Any]]
"""Sections of a config with their keys, such as ``{"es": {"sigma": 2e-3}}``."""


class ConfigError(UserError):
    """A config that cannot be run."""


_MOST_VALUES = 100_000
"""In a config."""


class Override(NamedTuple):
    """A change of one key of a config file."""

    section: str
    key: str
    value: Any
    """The new value, in the plain types that YAML has."""


Overrides = Sequence[str | Override] | Sections
"""Words such as "es.sigma=2e-3", or sections from Python."""


def overrides_of(changes: Overrides) -> list[Override]:
    """Return changes as overrides.

    Raises
    ------
    ConfigError
        If a word is not of the form section.key=value.
    TypeError
        If a value from Python has no counterpart in YAML.
    """
    if isinstance(changes, Mapping):
        return list(_from_sections(changes))
    return [_from_word(change) if isinstance(change, str) else change for change in changes]


def plain(value: Any, name: str) -> Any:
    """Return a value from Python in the types that YAML has: paths as text, arrays and tuples as lists, and so on.

    Parameters
    ----------
    value : object
    name : str
        Of the key or section, for the error message.

    Raises
    ------
    TypeError
        If the value has no counterpart in YAML.
    """
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if hasattr(value, "tolist"):  # an array or a number of NumPy or torch
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    raise TypeError(f"{name}: a config has no values of type {type(value).__name__}, got {value!r}")


def read_yaml(text: str) -> Any:
    """Return the contents of a YAML text; raise one of `YAML_ERRORS` if it is not valid."""
    # YAML 1.2 reads 1e-3 as a number and refuses a key that is there twice; PyYAML does neither.
    found = YAML(typ="safe", pure=True).load(text)
    _check_size(found)
    return found


def _check_size(tree: Any) -> None:
    """Raise ValueError if a tree is endless or huge once its aliases are written out: few lines may mean gigabytes."""
    left = [tree]
    for _ in range(_MOST_VALUES):
        if not left:
            return
        value = left.pop()
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value
    raise ValueError(f"it has more than {_MOST_VALUES:,} values, once its aliases are written out")


YAML_ERRORS = (YAMLError, ValueError, RecursionError)
"""What ruamel.yaml raises for bad text."""


def _from_word(word: str) -> Override:
    name, equals, text = word.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{word!r} is not an override: write section.key=value, such as es.sigma=2e-3")
    try:
        return Override(section, key, read_yaml(text))
    except YAML_ERRORS:
        return Override(section, key, text)  # a name with characters that have a meaning in YAML


def _from_sections(sections: Sections) -> Iterator[Override]:
    for section, keys in sections.items():
        if not isinstance(keys, Mapping):
            raise TypeError(
                f"sections with their keys are needed, such as es={{'sigma': 0.002}}; got {section}={keys!r}"
            )
        for key, value in keys.items():
            yield Override(section, key, plain(value, f"{section}.{key}"))
