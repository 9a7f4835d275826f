"""The settings of a sweep: a grid, or random draws, of the values of some keys, and several seeds for each."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from esmpi.config.overrides import YAML_ERRORS, Override, overrides_of, read_yaml
from esmpi.errors import UserError
from esmpi.es.random_streams import stream

SEED = "run.seed"
"""The key whose values are seeds of a setting and not settings themselves."""

_FIXED = ("run.name", "run.output_dir")
"""Keys with one value in a sweep: the names of its runs are made of the other keys and values."""
_DRAWS_EACH = 100
"""Draws for each setting that is wanted: if too few of them differ, there are no more."""
MOST_SETTINGS = 10_000
"""Of a grid."""
_LONGEST_WORD = 60
"""Characters of a value in the name of a run."""


@dataclass(frozen=True)
class Choice:
    """Values of a key: one of a list."""

    values: tuple[Any, ...]

    def at(self, u: float) -> Any:
        """Return the value for a random number u, 0 <= u < 1."""
        return self.values[int(u * len(self.values))]


@dataclass(frozen=True)
class Range:
    """Values of a key between two ends: whole numbers if both ends are, else numbers of three significant digits."""

    low: float
    high: float
    is_log: bool
    """Whether the logarithm is uniform, not the value."""

    def at(self, u: float) -> float:
        """Return the value for a random number u, 0 <= u < 1."""
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + is_whole
        value = low * (high / low) ** u if self.is_log else low + (high - low) * u
        return min(max(math.floor(value) if is_whole else float(f"{value:.3g}"), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What the words of a command line ask for.

    Attributes
    ----------
    fixed : list of Override
        Changes that all runs have in common.
    axes : dict of str to Choice or Range
        The keys with several values, in the order of the command line, without the seed.
    seeds : tuple of int or None
        Values of `run.seed`; None if the words give at most one.
    """

    fixed: list[Override]
    axes: dict[str, Choice | Range]
    seeds: tuple[Any, ...] | None

    def settings(self, num_draws: int | None, draw_seed: int) -> list[dict[str, Any]]:
        """Return the settings, each a value for each key of `axes`: the grid, or so many different random draws.

        Draw k of a key depends on `draw_seed`, k and the key alone, so more draws or other keys change none.

        Raises
        ------
        UserError
            If a range is to be a grid, or there are fewer different settings than draws.
        """
        if num_draws is not None:
            return self._draw(num_draws, draw_seed)
        lists = []
        for key, axis in self.axes.items():
            if isinstance(axis, Range):
                raise UserError(f"{key}: values of a range are drawn: say how many settings, with --random NUMBER")
            lists.append(axis.values)
        if (count := math.prod(map(len, lists))) > MOST_SETTINGS:
            raise UserError(
                f"the grid has {count:,} settings, more than {MOST_SETTINGS:,}: leave values out, or draw some "
                f"settings with --random NUMBER"
            )
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*lists)]

    def _draw(self, count: int, seed: int) -> list[dict[str, Any]]:
        if not self.axes:
            raise UserError("--random: no key has several values or a range, such as es.sigma=log:1e-4:1e-2")
        found: list[dict[str, Any]] = []
        for number in range(_DRAWS_EACH * count):
            drawn = {key: axis.at(stream(seed, f"sweep of {key}", number).random()) for key, axis in self.axes.items()}
            if drawn not in found:
                found.append(drawn)
            if len(found) == count:
                return found
        raise UserError(f"--random: {count} settings wanted, but only {len(found)} different ones were drawn")


def read_words(words: Sequence[str]) -> Search:
    """Return what words such as "es.sigma=1e-3,3e-3" ask for.

    Commas separate values, but not inside of brackets, braces and quotes; each value is read as in an override. A
    single value is an ordinary override. `log:LOW:HIGH` and `uniform:LOW:HIGH` are ranges.

    Raises
    ------
    UserError
        If a word is no override, or a key cannot have several values, or has them twice.
    """
    fixed: list[Override] = []
    axes: dict[str, Choice | Range] = {}
    for word in words:
        name, _, text = word.partition("=")
        parts = list(_parts(text))
        overrides = overrides_of([f"{name}={part}" for part in parts])
        axis = Choice(tuple(override.value for override in overrides)) if len(parts) > 1 else _range(name, text)
        if axis is None:
            fixed += overrides
            continue
        if "" in map(str.strip, parts):
            raise UserError(f"{word}: a value is missing beside a comma; write null for none")
        if name in _FIXED:
            raise UserError(f"{name}: has one value in a sweep, which names its runs after their settings")
        if name in axes:
            raise UserError(f"{name}: has several values twice")
        axes[name] = axis
    for section, key, _ in fixed:
        if f"{section}.{key}" in axes:
            raise UserError(f"{section}.{key}: has one value and several")
    seeds = axes.pop(SEED, None)
    if isinstance(seeds, Range):
        raise UserError(f"{SEED}: seeds are not drawn: --seeds NUMBER, or a list of them")
    return Search(fixed=fixed, axes=axes, seeds=None if seeds is None else seeds.values)


def overrides_of_setting(setting: Mapping[str, Any]) -> list[Override]:
    """Return the changes of a config that a setting is."""
    return [Override(*key.partition(".")[::2], value) for key, value in setting.items()]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return names of keys for people: without the section, where that is clear."""
    ends = [key.partition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def text_of(value: Any) -> str:
    """Return a value as an override would have it, on one line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def name_of(base: str, setting: Mapping[str, Any], seed: int) -> str:
    """Return the name of a run; it does not depend on the order of the keys, nor on how a value was written."""
    names = short_names(list(setting))
    words = [f"{names[key]}={_word(text_of(setting[key]))}" for key in sorted(setting)]
    return "_".join([base, *words, f"seed={seed}"])


def _parts(text: str) -> Iterator[str]:
    """Split a text at its commas that are not inside of brackets, braces or quotes."""
    part, depth, quote = "", 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and re.search(r"(^|[\[{,:])\s*$", part):  # within a word it is an apostrophe
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            yield part
            part = ""
            continue
        part += character
    yield part


def _range(name: str, text: str) -> Range | None:
    """Return the range that a text is; None if it is none."""
    found = re.fullmatch(r"(log|uniform):(.*):(.*)", text)
    if found is None:
        return None
    low, high = map(_value, found.groups()[1:])
    is_log = found[1] == "log"
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise UserError(
            f"{name}: {text} is no range: write {found[1]}:LOW:HIGH with two numbers, such as log:1e-4:1e-2"
        )
    if is_log and low <= 0:
        raise UserError(f"{name}: {text}: both ends of a range on a logarithmic scale must be above 0")
    return Range(low, high, is_log)


def _value(text: str) -> Any:
    try:
        return read_yaml(text)
    except YAML_ERRORS:
        return None


def _word(text: str) -> str:
    """Return a text with those characters alone that a run's name may have."""
    word = re.sub(r"[^\w.+=,-]+", "-", re.sub(r"[\[\]{}\"' ]", "", text))
    if len(word) > _LONGEST_WORD:
        word = f"{word[: _LONGEST_WORD - 9]}-{blake2b(text.encode(), digest_size=4).hexdigest()}"
    return word
