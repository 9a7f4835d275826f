"""Read a config: YAML and `section.key=value` overrides, checked into the dataclasses of `esmpi.config.sections`.

Importing this module is cheap: no torch, no MPI.
"""

import dataclasses
import importlib
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from esmpi.config.keys import default_of, key_of
from esmpi.config.sections import Config, EngineSection
from esmpi.errors import UserError, nearest

_ROOMS = {"engine": ("esmpi.engines", "kind"), "task": ("esmpi.tasks", "name")}
"""Sections whose keys belong to a plug-in: the room that it is in, and the key that names it.

The rooms stand above the config and are known here by their names alone. Each has `find_section(name)`, which returns
what a plug-in says of the config or None, `sections()`, the same of all that ship with esmpi, by name, and
`valid_names()`, for messages.
"""


class ConfigError(UserError):
    """A config that cannot be run."""


def load_config(path: str | Path, overrides: Sequence[str] = (), notes: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides such as `es.sigma=2e-3`, and check everything.

    Parameters
    ----------
    path : path
    overrides : sequence of str
    notes : list of str, optional
        Takes a line for each group of the file's keys that an override made void: see `parse_config`.

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
    return parse_config(tree, overrides, notes)


def parse_config(tree: dict[str, Any], overrides: Sequence[str] = (), notes: list[str] | None = None) -> Config:
    """Check a tree of plain types, as YAML or JSON gives it, into a Config; see `load_config`.

    An override that names another engine or task drops those keys of the tree that only the former one has, and says
    so in `notes`.
    """
    tree = {name: dict(keys) if isinstance(keys, dict) else keys for name, keys in tree.items()}
    overridden = {_apply_override(tree, override) for override in overrides}
    sections = _sections()
    for name in tree:
        if name not in sections:
            raise ConfigError(f"{name}: unknown section{nearest(str(name), sections)}")
    parsed = {}
    defaults: dict[str, dict[str, Any]] = {}
    for name, plain_type in sections.items():
        section_type, keys = plain_type, tree.get(name)
        keys = {} if keys is None else keys
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: must be a section with keys of its own, got {reprlib.repr(keys)}")
        if name in _ROOMS:
            section_type, of_others = _find_section(name, keys)
            defaults |= of_others
            keys = _without_foreign_keys(name, section_type, keys, overridden, notes if notes is not None else [])
        parsed[name] = _parse_section(name, section_type, defaults.get(name, {}) | keys)
    config = Config(**parsed)
    form = getattr(config.task, "chat_format", "none")
    if config.data.few_shot is not None and form not in ("none", "model"):
        raise ConfigError(f"data.few_shot: cannot stand in a prompt of task.chat_format: {form}; choose none or model")
    return config


def section_types(section: str, *configs: Mapping[str, Any]) -> list[type]:
    """Return the types that a section may have: its own, or those of the plug-ins that resolved configs name, the last
    one first, and then those of all plug-ins that ship with esmpi."""
    if section not in _ROOMS:
        return [_sections()[section]] if section in _sections() else []
    module, name_key = _ROOMS[section]
    room = importlib.import_module(module)
    types = []
    for config in reversed(configs):
        with suppress(UserError):  # a user's file that is not here any more
            if found := room.find_section(str(config.get(section, {}).get(name_key))):
                types.append(found[0])
    return [*types, *(found[0] for found in room.sections().values())]


def _sections() -> dict[str, type]:
    return {field.name: typing.cast(type, field.type) for field in dataclasses.fields(Config)}


def _find_section(section: str, keys: Mapping[str, Any]) -> tuple[type, dict[str, dict[str, Any]]]:
    """Return the type of a plug-in's section, and its defaults for other sections."""
    module, name_key = _ROOMS[section]
    room = importlib.import_module(module)
    name = keys.get(name_key, EngineSection.kind if section == "engine" else None)
    found: tuple[type, dict[str, dict[str, Any]]] | None = room.find_section(name) if isinstance(name, str) else None
    if found is None:
        what = "missing key" if name is None else f"unknown {section} {name!r}"
        if str(name).endswith(".py"):
            raise ConfigError(f"{section}.{name_key}: {name}: which object in it? Write {name}:NAME")
        raise ConfigError(f"{section}.{name_key}: {what}{nearest(str(name), room.valid_names())}")
    return found


def _without_foreign_keys(
    section: str, section_type: type, keys: dict[str, Any], overridden: set[tuple[str, str]], notes: list[str]
) -> dict[str, Any]:
    """Return a plug-in's keys without those that only other plug-ins of its room have.

    Where an override chose the plug-in, such keys of the file are dropped, and `notes` says so. One that has its
    default has no effect, and stands in the run files of older versions. Any other is an error.
    """
    room, name_key = importlib.import_module(_ROOMS[section][0]), _ROOMS[section][1]
    own = _fields(section_type)
    others = {name: _fields(found[0]) for name, found in room.sections().items()}
    kept, dropped = {}, []
    for key, value in keys.items():
        owners = [name for name, fields in others.items() if key in fields]
        if key in own or not owners:
            kept[key] = value
        elif (section, name_key) in overridden and (section, key) not in overridden:
            dropped.append(f"{section}.{key}")
        elif value != default_of(others[owners[0]][key]):
            raise ConfigError(
                f"{section}.{key}: is only for {section}.{name_key}: {' or '.join(owners)}. Remove the key, or set "
                f"{section}.{name_key}={owners[0]}"
            )
    if dropped:
        notes.append(
            f"{section}.{name_key}={keys[name_key]} does not use these keys of the config: {', '.join(dropped)}"
        )
    return kept


def _parse_section(section: str, section_type: type, keys: dict[str, Any]) -> Any:
    fields = _fields(section_type)
    hints = typing.get_type_hints(section_type)
    for key, value in keys.items():
        if key not in fields:
            raise ConfigError(f"{section}.{key}: unknown key{nearest(str(key), fields)}")
        choices, names = _choices(hints[key]), key_of(fields[key]).choices()
        if (choices and value not in choices) or (names and isinstance(value, str) and value not in names):
            raise ConfigError(
                f"{section}.{key}: must be one of {', '.join(choices or names)}; got {reprlib.repr(value)}"
            )
        for name in value if names and isinstance(value, list) else ():
            if name not in names:
                raise ConfigError(f"{section}.{key}: must be among {', '.join(names)}; got {reprlib.repr(name)}")
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


def _fields(section_type: type) -> "dict[str, dataclasses.Field[Any]]":
    return {field.name: field for field in dataclasses.fields(section_type)}


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


def _apply_override(tree: dict[str, Any], override: str) -> tuple[str, str]:
    """Put an override's value into the tree; return its section and key."""
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
    return section, key


def _yaml(text: str) -> Any:
    # YAML 1.2 reads 1e-3 as a number and refuses a key that is there twice; PyYAML does neither.
    return YAML(typ="safe", pure=True).load(text)
