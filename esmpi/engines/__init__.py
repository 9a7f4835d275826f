"""Engines, found by name: what ships with esmpi, a class in a user's file, or an installed package's.

Each module or package here that defines an `EngineConfig` is an engine that ships with esmpi.
"""

from dataclasses import is_dataclass
from functools import cache
from types import ModuleType
from typing import cast, get_type_hints

from esmpi import plugins
from esmpi.config.keys import PlugIn
from esmpi.config.sections import Config
from esmpi.engines.base import Completion, Engine, EngineConfig, Request, Sampling, Waves
from esmpi.errors import UserError, nearest, said

ENTRY_POINTS = "esmpi.engines"
"""Group of the entry points by which installed packages offer engines: each names a subclass of `EngineConfig`."""


def engine_types() -> dict[str, type[EngineConfig]]:
    """Return the configs of the engines that ship with esmpi, by `engine.kind`."""
    return {found.kind: found for found in cast(tuple[type[EngineConfig], ...], _classes())}


def find_engine(kind: str) -> type[EngineConfig] | None:
    """Return the config of the engine that `engine.kind` names, None if there is none.

    Raises
    ------
    UserError
        If a user's file or an entry point has no such engine.
    """
    found: type[EngineConfig] | None = engine_types().get(kind)
    if found is not None:
        return found
    if plugins.names_a_file(kind):
        return _checked(_from_file(kind))
    found = plugins.from_entry_point("engine.kind", ENTRY_POINTS, kind, EngineConfig)
    return None if found is None else _checked(found)


def engine_config(config: Config) -> EngineConfig:
    """Return the engine section of a checked config as what it is: the config of one engine."""
    assert isinstance(config.engine, EngineConfig)
    return config.engine


def find_plug_in(name: str) -> PlugIn | None:
    """Return what an engine adds to the config, None if there is no such engine."""
    engine = find_engine(name)
    return None if engine is None else PlugIn(engine)


def plug_ins() -> dict[str, PlugIn]:
    """Return what the engines that ship with esmpi add to the config, by their names."""
    return {kind: PlugIn(engine) for kind, engine in engine_types().items()}


def engine_packages(config: Config | None) -> tuple[str, ...]:
    """Return the installed packages that engines compute with: of those that ship with esmpi, and of the config's."""
    engines = [*engine_types().values(), *([] if config is None else [type(engine_config(config))])]
    return tuple(dict.fromkeys(name for engine in engines for name in engine.packages))


def valid_names() -> list[str]:
    """Return the names of the engines that ship with esmpi, for messages."""
    return [*engine_types(), "file.py:Class"]


def _classes() -> tuple[type, ...]:
    return plugins.classes("esmpi.engines", EngineConfig)


def _from_file(kind: str) -> type[EngineConfig]:
    path, _, name = kind.rpartition(":")
    module = _executed(path, plugins.source_of("engine.kind", path))
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, EngineConfig)) or found is EngineConfig:
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        there = [value.__name__ for value in own if isinstance(value, type) and issubclass(value, EngineConfig)]
        raise UserError(f"engine.kind: {path} has no subclass of EngineConfig called {name!r}{nearest(name, there)}")
    return found


@cache
def _executed(path: str, source: bytes) -> ModuleType:
    # The config is looked up more than once in a process, and all of them must mean the same class.
    return plugins.execute_file("engine.kind", path, source)


def _checked(found: type[EngineConfig]) -> type[EngineConfig]:
    """Return the config of an engine that does not come with esmpi; raise UserError if it is not fit for one."""
    name = found.__qualname__
    opened = getattr(found, "engine", None)
    if opened is None:
        raise UserError(f"engine.kind: {name} does not say which engine it opens: set `engine`")
    if not (isinstance(opened, str) and ":" in opened) and not (
        isinstance(opened, type) and issubclass(opened, Engine)
    ):
        raise UserError(f"engine.kind: {name}.engine must be a subclass of Engine, or 'module:Class', got {opened!r}")
    if not is_dataclass(found):
        raise UserError(f"engine.kind: {name} must be a dataclass")
    try:
        get_type_hints(found)
    except Exception as error:  # whatever evaluating an annotation raises
        raise UserError(f"engine.kind: the type of a key of {name} cannot be read: {said(error)}") from error
    return found


__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "Request",
    "Sampling",
    "Waves",
    "engine_config",
    "engine_packages",
    "engine_types",
    "find_engine",
]
