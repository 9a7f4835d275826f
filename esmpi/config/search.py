"""The sections of a config that say how theta is searched for: `es` and `guard`."""

from dataclasses import dataclass
from typing import Literal

from esmpi.config.keys import Section, key, require

Schedule = Literal["constant", "linear", "cosine"]
_FACTOR = 0.5
_END = 0.1
"""Where schedules end by default."""


@dataclass(frozen=True, kw_only=True)
class EsConfig(Section):
    """The population and the update."""

    population_size: int = key(30, minimum=2, maximum=10**7)
    """Number of members of a generation, N."""
    generations: int = key(minimum=0, maximum=10**9, changes_result="no")
    """Number of generations, and so of updates. More of them prolong a finished run."""
    sigma: float = key(1e-3, minimum=1e-12, below=1e3)  # a sigma below float32's resolution would move no weight
    """Scale of the perturbation: a member's weights are theta + sigma * eps."""
    alpha: float | None = key(None, minimum=0, below=1e3)
    """Step size: theta += alpha / N * sum of shaped fitness * eps. null: sigma / 2. 0: theta stays, and the members are
    a random search, whose best ones `esmpi eval --ensemble` lets vote."""
    sigma_schedule: Schedule = "constant"
    """How sigma changes over the generations: not at all, or from its value to `sigma_end` of it, linearly or as half a
    cosine wave."""
    sigma_end: float = key(_END, above=0, maximum=10)
    """The last generation's sigma, as a share of the first one's."""
    alpha_schedule: Schedule = "constant"
    """How alpha changes over the generations."""
    alpha_end: float = key(_END, minimum=0, maximum=10)
    """The last generation's alpha, as a share of the first one's."""
    warmup: int = key(0, minimum=0, maximum=10**9)
    """In so many first generations, alpha rises to its value in equal steps."""
    sigma_warmup: int = key(0, minimum=0, maximum=10**9)
    """The same for sigma."""
    schedule_generations: int | None = key(None, minimum=1, maximum=10**9)
    """Length of the schedules in generations; after that, sigma and alpha stay as they are. null: `generations`. A run
    that is prolonged later must name the former number here."""
    noise: Literal["full", "low_rank"] = "full"
    """full: each weight has noise of its own. low_rank: the noise of a matrix is a product of two thin ones, so that
    the engine can evaluate several members at once; biases and norms have none."""
    rank: int = key(1, minimum=1, maximum=256)
    """Rank of low-rank noise."""
    include: tuple[str, ...] = ("*",)
    """Patterns of the tensors that have noise, by the names in the checkpoint, such as `*.mlp.*`. All others stay as
    they are."""
    exclude: tuple[str, ...] = ()
    """Patterns of tensors that have no noise though `include` names them, such as `*embed_tokens*`."""
    sigma_per_tensor: Literal["none", "std"] = "none"
    """std: sigma and alpha of each tensor are times the standard deviation of its values in the base model."""
    anchor: float = key(0.0, minimum=0, below=1e3)
    """Weight decay towards the base model: after each update, theta moves back by alpha * anchor of its distance."""
    max_distance: float | None = key(None, above=0)
    """Largest Euclidean distance of theta from the base model, over the tensors that have noise. After an update that
    leads farther away, theta is moved back to this distance."""
    shaping: str = key("zscore", plugins="esmpi.es.shapings")
    """How fitness becomes shaped fitness. zscore: minus mean, divided by standard deviation. centered_rank: ranks from
    -0.5 to 0.5. log_rank: the utilities of natural evolution strategies, which tell only the better half apart. top_k:
    the fittest `top_k` members count, all the same. per_prompt: the mean over prompts of z-scores among the members'
    rewards for a prompt. raw: minus mean, so that alpha depends on the scale of the reward."""
    top_k: int | None = key(None, minimum=1, maximum=10**7)
    """With shaping top_k, how many members count. null: a quarter of them."""
    antithetic: bool = False
    """Whether members come in pairs with +eps and -eps."""
    fitness: Literal["mean", "best_of", "pass_at_k", "majority"] = "mean"
    """How several completions of a prompt (sampling.num_samples) become the reward of the prompt; a member's fitness is
    the mean of its prompts' rewards. mean: their mean reward. best_of: the best reward. pass_at_k: an estimate of the
    chance that at least one of k completions is right. majority: the reward of the most frequent answer."""
    fitness_k: int | None = key(None, minimum=1, maximum=10_000)
    """k of pass_at_k, at most sampling.num_samples. null: all of them."""
    dispatch: Literal["static", "dynamic"] = key("static", changes_result="no")
    """Who evaluates which member. static: each rank has a fixed share. dynamic: a rank that is free takes the next
    member, which pays if completions differ in length or nodes in speed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
            super().__post_init__()  # alpha has bounds, too
        scheduled = {self.sigma_schedule, self.alpha_schedule} != {"constant"}
        if scheduled and self.schedule_generations is None:
            object.__setattr__(self, "schedule_generations", self.generations or 1)
        require(
            scheduled or self.schedule_generations is None,
            "schedule_generations: has no effect without es.sigma_schedule or es.alpha_schedule",
        )
        for name, schedule in (("sigma_end", self.sigma_schedule), ("alpha_end", self.alpha_schedule)):
            require(
                getattr(self, name) == _END or schedule != "constant",
                f"{name}: has no effect without es.{name.removesuffix('end')}schedule",
            )
        largest = self.step_size * (1 if self.alpha_schedule == "constant" else max(1, self.alpha_end))
        require(
            largest * self.anchor < 1,
            f"anchor: times alpha, {largest:g}, it must be below 1, got {self.anchor:g}",
        )
        require(
            not self.antithetic or self.population_size % 2 == 0,
            f"population_size: antithetic pairs need an even number, got {self.population_size}",
        )
        require(
            self.top_k is None or self.shaping == "top_k",
            f"top_k: has no effect on shaping {self.shaping}: set es.shaping=top_k, too",
        )
        require(
            self.top_k is None or self.top_k < self.population_size,
            f"top_k: must be less than es.population_size, {self.population_size}, got {self.top_k}",
        )
        require(
            self.fitness_k is None or self.fitness == "pass_at_k",
            f"fitness_k: has no effect on es.fitness: {self.fitness}: remove the key, or set es.fitness=pass_at_k",
        )

    @property
    def schedule_length(self) -> int:
        """Number of generations from the beginning of the schedules to their end."""
        return self.schedule_generations or self.generations

    @property
    def noise_rank(self) -> int:
        """Rank of the noise, 0 for full rank."""
        return self.rank if self.noise == "low_rank" else 0

    @property
    def step_size(self) -> float:
        """Alpha, which is never None once the config is checked."""
        assert self.alpha is not None
        return self.alpha


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Section):
    """What the run does when evaluations get worse. It looks at them whenever `eval.every` has them made."""

    patience: int | None = key(None, minimum=1)
    """Stop after so many evaluations in a row that are no better than the best one."""
    measure: Literal["accuracy", "reward_mean"] = "accuracy"
    """Which result on the held-out problems counts."""
    max_drop: float | None = key(None, minimum=0)
    """Act if the held-out result is worse than the best one by more than this."""
    max_kl: float | None = key(None, above=0)
    """Act if the KL divergence from the base model, per token, is larger than this. Needs `eval.divergence`."""
    max_retention_drop: float | None = key(None, minimum=0, maximum=1)
    """Act if the accuracy of a suite of `eval.retention` is worse than the base model's by more than this."""
    action: Literal["stop", "shrink", "restore"] = "stop"
    """stop: end the run. shrink: multiply alpha by `factor`. restore: take theta back to the best generation with which
    nothing was wrong, and multiply alpha by `factor`."""
    factor: float = key(_FACTOR, above=0, maximum=1)
    """What alpha is multiplied with by shrink and restore."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (self.max_drop, self.max_kl, self.max_retention_drop)
        require(
            self.action == "stop" or any(limit is not None for limit in limits),
            f"action: {self.action} needs a limit: set guard.max_drop, guard.max_kl or guard.max_retention_drop",
        )
        require(self.factor == _FACTOR or self.action != "stop", "factor: has no effect on guard.action: stop")

    @property
    def acts(self) -> bool:
        """Whether it has anything to watch."""
        return any(limit is not None for limit in (self.patience, self.max_drop, self.max_kl, self.max_retention_drop))
