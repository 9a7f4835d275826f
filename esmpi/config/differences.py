"""In which keys two configs differ, and whether that makes them different runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from esmpi.config.keys import ChangesResult, default_of, key_of
from esmpi.config.reader import common_keys, fields_of, plug_in_key


@dataclass(frozen=True)
class Difference:
    """A key that has another value in another config."""

    section: str
    key: str
    before: Any
    after: Any
    changes_result: ChangesResult
    """As the key's field says; "yes" for a key that this esmpi does not know."""

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} -> {self.after!r}"

    @property
    def name(self) -> str:
        """Section and key."""
        return f"{self.section}.{self.key}"

    @property
    def matters(self) -> bool:
        """Whether this is another run, as far as the configs show. Digests show the rest."""
        return self.changes_result == "yes"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the keys in which two resolved configs differ, as `Config.to_dict` gives them, in alphabetical order.

    A key that one of them lacks, because an older esmpi did not have it, counts as having its default. If they name
    different engines or tasks, only the keys that all engines or tasks have are compared.
    """
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        if before == after:
            continue
        fields = fields_of(section, old, new)
        keys = {*before, *after}
        if (name_key := plug_in_key(section)) and before.get(name_key) != after.get(name_key):
            keys &= common_keys(section)
        for key in sorted(keys):
            default = default_of(fields[key]) if key in fields else None
            one, other = before.get(key, default), after.get(key, default)
            if one != other:
                yield Difference(
                    section, key, one, other, key_of(fields[key]).changes_result if key in fields else "yes"
                )
