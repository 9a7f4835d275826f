"""In which keys two configs differ, and whether that makes them different runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from esmpi.config.keys import ChangesResult, default_of, key_of
from esmpi.config.reader import section_types


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

    def matters(self, sampled: bool) -> bool:
        """Return whether this is another run, as far as the configs tell: digests tell the rest.

        `sampled` says whether completions are sampled, and not greedy.
        """
        return self.changes_result == "yes" or (self.changes_result == "if_sampled" and sampled)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the keys in which two resolved configs differ, as `Config.to_dict` gives them, in alphabetical order.

    A key that one of them lacks, as an older esmpi did not have it, counts as having its default.
    """
    for section in sorted({*old, *new}):
        known = {field.name: field for kind in reversed(section_types(section, old, new)) for field in fields(kind)}
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            default = default_of(known[key]) if key in known else None
            one, other = before.get(key, default), after.get(key, default)
            if one != other:
                changes_result = key_of(known[key]).changes_result if key in known else "yes"
                yield Difference(section, key, one, other, changes_result)
