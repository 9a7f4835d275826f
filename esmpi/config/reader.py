"""Read a config: YAML and `section.key=value` overrides, checked into the dataclasses of `esmpi.config.sections`.

Importing this module is cheap: no torch, no MPI.
"""

import dataclasses
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from esmpi.config.sections import Config
from esmpi.errors import UserError, nearest
from esmpi.tasks import TASKS, Task, find_task


class ConfigError(UserError):
    """A config that cannot be run."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides such as `es.sigma=2e-3`, and check everything.

    Raises
    ------
    ConfigError
        With one line that says what is wrong, where, and the nearest valid choice.
    """
    path = Path(path)
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        siblings = [str(path.parent / entry.name) for entry in path.parent.glob("*.yaml")]
        raise ConfigError(f"cannot read config {path}: {error.strerror}{nearest(str(path), siblings)}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ruamel raises all of these for bad text
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections: {', '.join(_sections())}")
    return parse_config(tree, overrides)


def parse_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Check a tree of plain types, as YAML or JSON gives it, into a Config; see `load_config`."""
    tree = {name: dict(keys) if isinstance(keys, dict) else keys for name, keys in tree.items()}
    for override in overrides:
        _apply_override(tree, override)
    sections = _sections()
    for name in tree:
        if name not in sections:
            raise ConfigError(f"{name}: unknown section{nearest(str(name), sections)}")
    parsed = {}
    for name, section_type in sections.items():
        keys = tree.get(name)
        keys = {} if keys is None else keys
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: must be a section with keys of its own, got {reprlib.repr(keys)}")
        if name == "sampling":  # after `task`: the order is that of the sections
            keys = _task(tree["task"]).default_sampling | keys
        parsed[name] = _parse_section(name, _task(keys).config_type if name == "task" else section_type, keys)
    config = Config(**parsed)
    form = getattr(config.task, "chat_format", "none")
    if config.data.few_shot is not None and form not in ("none", "model"):
        raise ConfigError(f"data.few_shot: cannot stand in a prompt of task.chat_format: {form}; choose none or model")
    return config


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return "section.key: old -> new" for each key in which two resolved configs differ."""
    lines = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                lines.append(f"{section}.{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines


def _sections() -> dict[str, type]:
    return {field.name: typing.cast(type, field.type) for field in dataclasses.fields(Config)}


def _task(keys: dict[str, Any]) -> type[Task]:
    name = keys.get("name")
    task = find_task(name) if isinstance(name, str) else None
    if task is None:
        what = "missing key" if name is None else f"unknown task {name!r}"
        if str(name).endswith(".py"):
            raise ConfigError(f"task.name: {name}: which function of it? Write {name}:FUNCTION")
        raise ConfigError(f"task.name: {what}{nearest(str(name), [*TASKS, 'gym:<name>', 'file.py:function'])}")
    return task


def _parse_section(section: str, section_type: type, keys: dict[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(section_type)}
    hints = typing.get_type_hints(section_type)
    for key, value in keys.items():
        if key not in fields:
            raise ConfigError(f"{section}.{key}: unknown key{nearest(str(key), fields)}")
        choices = _choices(hints[key])
        if choices and value not in choices:
            raise ConfigError(f"{section}.{key}: must be one of {', '.join(choices)}; got {reprlib.repr(value)}")
    for key, field in fields.items():
        if key not in keys and field.default is dataclasses.MISSING is field.default_factory:
            raise ConfigError(f"{section}.{key}: missing; it has no default")
    try:
        return msgspec.convert(keys, section_type)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        if not place:  # a check in __post_init__, which names its key first
            raise ConfigError(f"{section}.{message}") from None
        key = re.split(r"[.\[`]", place.removeprefix("."))[0]
        if not key:
            raise ConfigError(f"{section}.{message}") from None
        raise ConfigError(f"{section}.{key}: {message.replace('`', '')}: {reprlib.repr(keys.get(key))}") from None


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r} is no override: write section.key=value, such as es.sigma=2e-3")
    try:
        value = _yaml(text)
    except (YAMLError, ValueError, RecursionError):
        value = text  # a name with signs that mean something in YAML
    if tree.get(section) is None:
        tree[section] = {}
    if not isinstance(tree[section], dict):
        raise ConfigError(f"{section}: must be a section with keys of its own, got {reprlib.repr(tree[section])}")
    tree[section][key] = value


def _yaml(text: str) -> Any:
    # YAML 1.2 reads 1e-3 as a number and refuses a key that is there twice; PyYAML does neither.
    return YAML(typ="safe", pure=True).load(text)
