"""What a config says of the noise: its rank, which tensors have it, and by what scale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.noise.format import Noise, is_matrix


@dataclass(frozen=True)
class NoiseSettings:
    """The keys of section `es` that decide about the noise. A run file of an esmpi without a key has its default."""

    rank: int = 0
    """0 for full rank."""
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    sigma_per_tensor: str = "none"

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "NoiseSettings":
        """Return what section `es` of a resolved config says."""
        return cls(
            rank=int(section.get("rank", 1)) if section.get("noise") == "low_rank" else 0,
            include=tuple(section.get("include", cls.include)),
            exclude=tuple(section.get("exclude", cls.exclude)),
            sigma_per_tensor=section.get("sigma_per_tensor", cls.sigma_per_tensor),
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "NoiseSettings":
        """Return settings from their fields, in which tuples are lists as JSON has them."""
        return cls(**{**fields, "include": tuple(fields["include"]), "exclude": tuple(fields["exclude"])})

    @property
    def is_default(self) -> bool:
        """Whether all weights have full-rank noise of the same scale."""
        return self == NoiseSettings()

    def names(self, base: BaseModel) -> list[str]:
        """Return the canonical names of the tensors that have noise, in the order of the checkpoint.

        Raises
        ------
        UserError
            If there is none, or if a pattern matches no tensor.
        """
        known = base.canonical_names()
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    if base.config.get("tie_word_embeddings") and fnmatchcase("lm_head.weight", pattern):
                        raise UserError(f"es.{key}: {pattern!r}: lm_head.weight is tied to the embedding: name that")
                    raise UserError(
                        f"es.{key}: {pattern!r} matches no tensor of {base.folder}; names are such as {known[0]}"
                    )
        chosen = [name for name in known if _any(name, self.include) and not _any(name, self.exclude)]
        if not chosen:
            raise UserError("es.include, es.exclude: no tensor is left that has noise")
        with_noise = [name for name in chosen if self.rank == 0 or is_matrix(base.tensors[name].shape)]
        if not with_noise:
            raise UserError(f"es.noise: low_rank: no matrix of {base.folder} takes part: choose full")
        return with_noise

    def noise(self, base: BaseModel) -> Noise:
        """Return the noise of members of this model.

        With `sigma_per_tensor: std`, all values of the tensors that have noise are read for this.
        """
        names = self.names(base)
        if self.sigma_per_tensor == "std":
            return Noise(self.rank, {name: base.standard_deviation(name) for name in names})
        if self.include == NoiseSettings.include and not self.exclude:
            return Noise(self.rank)
        return Noise(self.rank, dict.fromkeys(names, 1.0))

    def describe(self, base: BaseModel) -> str:
        """Return which weights have noise, how many these are, and which noise it is, for people."""
        names = self.names(base)
        num_weights = sum(base.tensors[name].num_elements for name in names)
        share = num_weights / base.num_weights
        rank = f"rank {self.rank}" if self.rank else "full rank"
        scale = ", times each tensor's standard deviation" if self.sigma_per_tensor == "std" else ""
        tensors = f"{len(names)} of {len(base.tensors)} tensors"
        return f"{rank}, on {tensors} with {num_weights:,} weights, {share:.1%} of all{scale}"


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
