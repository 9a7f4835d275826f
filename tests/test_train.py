"""Parts of a generation."""

from types import SimpleNamespace
from typing import Any

from esmpi.train import make_requests


def session(seed: int, generation: int) -> Any:
    """What a generation's requests depend on, and nothing else."""
    config = SimpleNamespace(run=SimpleNamespace(seed=seed))
    return SimpleNamespace(config=config, generation=generation, prompt=lambda example: str(example["text"]))


def test_each_prompt_of_a_generation_has_a_seed_of_its_own() -> None:
    """Otherwise equal prompts, or the same place in two mini-batches, would have the same completion."""
    examples: list[dict[str, Any]] = [{"text": "same"}, {"text": "same"}, {"text": "other"}]
    made = [make_requests(session(seed, generation), examples) for seed, generation in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert [request.prompt for request in made[0]] == ["same", "same", "other"]
    assert made[0] == made[1]
    seeds = [request.seed for requests in (made[0], made[2], made[3]) for request in requests]
    assert len(set(seeds)) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)
