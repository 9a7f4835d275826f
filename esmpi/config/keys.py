"""Metadata of a config's keys, declared at the field: bounds, unit, choices, and whether the key changes the result."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from esmpi import plugins

ChangesResult = Literal["yes", "no", "by_digest"]
"""Whether another value of a key makes another run.

yes: theta, or what an evaluation means, may change. no: it changes where files are, how fast the run is, what it shows,
or how long it is. by_digest: the key says where something is read from, and the digest of what was read decides.
"""

_KEY = "esmpi.key"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Metadata of a key besides its type, default and description."""

    minimum: float | None = None
    """The least value."""
    above: float | None = None
    """A value must be larger."""
    maximum: float | None = None
    """The largest value."""
    below: float | None = None
    """A value must be smaller."""
    unit: str | None = None
    """Unit of the value, such as s or GiB."""
    plugins: str | None = None
    """The room whose plug-ins are the valid names, such as `esmpi.es.shapings`."""
    changes_result: ChangesResult = "yes"
    """See `ChangesResult`."""

    def choices(self) -> tuple[str, ...]:
        """Return the valid names, empty if the key is not a plug-in's name."""
        return () if self.plugins is None else tuple(plugins.modules(self.plugins))

    def trouble(self, value: Any) -> str | None:
        """Return what is wrong with a value, None if nothing is. A key may be left open, so the value None is valid."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        low_ok = (self.minimum is None or value >= self.minimum) and (self.above is None or value > self.above)
        high_ok = (self.maximum is None or value <= self.maximum) and (self.below is None or value < self.below)
        num_bits = value.bit_length() if isinstance(value, int) else 0
        got = f"an integer of {num_bits:,} bits" if num_bits > 64 else value
        if not (low_ok and high_ok) or (isinstance(value, float) and math.isnan(value)):
            return f"must be {self.range()}, got {got}"
        return f"must be between -2^63 and 2^63, got {got}" if num_bits > 63 else None

    def range(self) -> str:
        """Return the bounds in words, such as "at least 1"; empty without any."""
        if self.minimum is not None and self.maximum is not None:
            return f"between {_number(self.minimum)} and {_number(self.maximum)}"
        words = ("at least", self.minimum), ("above", self.above), ("at most", self.maximum), ("below", self.below)
        return " and ".join(f"{word} {_number(bound)}" for word, bound in words if bound is not None) or "a number"


def key(
    default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None, **what: Any
) -> Any:  # the type of the field that it stands for
    """Return a dataclass field: a key of the config with its default, and its `Key` metadata."""
    metadata = {_KEY: Key(**what)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def key_of(field: "dataclasses.Field[Any]") -> Key:
    """Return the metadata of a field. A field without any counts as changing the result."""
    known: Key = field.metadata.get(_KEY, Key())
    return known


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return a field's default in JSON types, or None if it has no default."""
    value = None if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return msgspec.json.decode(msgspec.json.encode(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the config. Its values are checked against the metadata of their fields.

    A subclass that checks more does so in `__post_init__`, after calling this one.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if trouble := key_of(field).trouble(getattr(self, field.name)):
                raise ValueError(f"{field.name}: {trouble}")


@dataclasses.dataclass(frozen=True)
class PlugIn:
    """What an engine or a task adds to the config."""

    section: type
    """The type of its own section, a dataclass."""
    defaults: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Its defaults for keys of other sections, by section."""

    @property
    def fields(self) -> "dict[str, dataclasses.Field[Any]]":
        """The fields of its section by their names."""
        return {field.name: field for field in dataclasses.fields(self.section)}


def require(condition: bool, message: str) -> None:
    """Raise ValueError, with a message that starts with the key's name, unless a condition holds."""
    if not condition:
        raise ValueError(message)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
