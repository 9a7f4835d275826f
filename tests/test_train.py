"""Parts of a generation."""

from types import SimpleNamespace
from typing import Any

import pytest

from esmpi.batches import batches, make_requests
from esmpi.config.problems import DataConfig
from esmpi.config.search import EsConfig
from esmpi.es.random_streams import stream_seed

EXAMPLES: list[dict[str, Any]] = [{"text": f"problem {i}"} for i in range(24)]


def session(seed: int, generation: int, num_samples: int = 1, **keys: Any) -> Any:
    """What a generation's requests depend on, and nothing else."""
    config = SimpleNamespace(
        run=SimpleNamespace(seed=seed),
        sampling=SimpleNamespace(num_samples=num_samples),
        es=EsConfig(generations=9, population_size=4, antithetic=keys.pop("antithetic", False)),
        data=DataConfig(num_train=len(EXAMPLES), batch_size=3, **keys),
    )
    problems = SimpleNamespace(train=EXAMPLES)
    return SimpleNamespace(
        config=config,
        generation=generation,
        first_prompt=lambda example: str(example["text"]),
        problems=problems,
    )


def test_each_prompt_of_a_generation_has_a_seed_of_its_own() -> None:
    """Otherwise equal prompts, or the same place in two mini-batches, would have the same completion."""
    examples: list[dict[str, Any]] = [{"text": "same"}, {"text": "same"}, {"text": "other"}]
    made = [make_requests(session(seed, generation), examples) for seed, generation in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert [request.prompt for request in made[0]] == ["same", "same", "other"]
    assert made[0] == made[1]
    seeds = [request.seed for requests in (made[0], made[2], made[3]) for request in requests]
    assert len(set(seeds)) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    # runs of an esmpi that knew no samples resume with the same completions
    assert [request.seed for request in made[0]] == [stream_seed(1, "sampling", 0) + i for i in range(3)]
    assert made[0][0].seed == 4600952573224419986


def test_each_sample_has_a_seed_of_its_own_and_the_first_is_that_of_a_single_one() -> None:
    single, several = (make_requests(session(7, 2, num_samples), EXAMPLES) for num_samples in (1, 5))
    assert [request.prompt for request in several] == [request.prompt for request in single for _ in range(5)]
    assert several[::5] == single
    assert len({request.seed for request in several}) == 5 * len(EXAMPLES)


def prompts(run: Any, member: int) -> list[str]:
    return [request.prompt for request in batches(run)(member).requests]


def test_members_share_their_prompts_unless_each_has_its_own() -> None:
    shared = session(1, 1)
    assert all(prompts(shared, member) == prompts(shared, 0) for member in range(4))
    for order, antithetic in (("epochs", False), ("random", False), ("random", True)):
        own = [session(1, g, prompts="per_member", order=order, antithetic=antithetic) for g in range(2)]
        drawn = [tuple(prompts(run, member)) for run in own for member in range(4)]
        assert drawn == [tuple(prompts(run, member)) for run in own for member in range(4)], "by seed and member alone"
        assert len(set(drawn)) == (4 if antithetic else 8)
        if antithetic:
            assert drawn[::2] == drawn[1::2]
            assert len({drawn[0], drawn[2], drawn[4], drawn[6]}) == 4
        assert drawn[0] != tuple(prompts(session(2, 0, prompts="per_member", order=order), 0)), "by the run's seed"


def test_epochs_of_members_with_prompts_of_their_own_have_each_problem_once() -> None:
    drawn = [
        prompt
        for generation in range(2)
        for member in range(4)
        for prompt in prompts(session(3, generation, prompts="per_member"), member)
    ]
    assert sorted(drawn) == sorted(example["text"] for example in EXAMPLES)


def test_the_examples_of_a_batch_are_those_of_its_requests() -> None:
    batch = batches(session(1, 0, num_samples=2, prompts="per_member"))(3)
    assert [example["text"] for example in batch.examples] == [request.prompt for request in batch.requests]
    assert len(batch.examples) == 6


def test_the_first_prompts_cannot_be_each_members_own() -> None:
    with pytest.raises(ValueError, match="prompts: per_member has no effect"):
        DataConfig(order="fixed", prompts="per_member")
