"""The result of evaluating a suite of held-out problems."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of a suite. Reward and accuracy are two things, and both are given."""

    accuracy: float
    """Share of completions whose answer is right; with n completions a problem this is avg@n."""
    reward_mean: float
    num_samples: int
    """Completions."""
    num_problems: int
    num_truncated: int
    """Completions that `sampling.max_tokens` cut off."""
    tokens_mean: float
    """New tokens of a completion."""
    tokens_max: int
    characters_mean: float
    """Characters of a completion."""
    num_failed: int
    """Completions whose reward could not be computed."""
    num_unparsed: int
    """Completions in which no answer could be read."""
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    """Further numbers: `pass_at_<k>`, `kl_per_token`, `theta_distance`, and the means of those that the task gives."""

    def to_row(self) -> dict[str, float]:
        """Return all numbers by name."""
        row = asdict(self)
        return row.pop("figures") | row
