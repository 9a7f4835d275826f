"""Sampling means the same on both engines: the same greedy completions, the same tokens to sample from."""

import json
from pathlib import Path
from typing import Any

import pytest
import sampling
from support import VLLM_SMALL
from test_engine import FORKS, PROMPTS, TINY

GREEDY: list[dict[str, Any]] = [
    {},
    {"stop": ["</answer>"], "include_stop": True},
    {"stop": ["</answer>"]},
    {"stop": ["</ans", "r>(1", "\n<a"], "include_stop": True},
    {"stop": ["r>", "answer>", ")-"], "min_tokens": 12},
    {"stop": ["1", "</"], "min_tokens": 30, "include_stop": True},
    {"stop": ["-", "+"], "max_tokens": 4},
    {"stop_token_ids": [264], "include_stop": True, "stop": ["swer>"]},
    {"repetition_penalty": 1.2},
    {"repetition_penalty": 0.8, "min_tokens": 37},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.0},
    {"frequency_penalty": -0.5, "presence_penalty": 2.0},
    {"min_tokens": 35},
    {"min_tokens": 39, "stop_token_ids": [264, 31]},
    {"bad_words": ["9,", "<answer>(1", "="]},
    {
        **{"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2, "min_tokens": 8},
        **{"bad_words": ["1,1"], "stop": ["</answer>", "5\n"], "include_stop": True},
    },
]


def generate(folder: Path, **engine: Any) -> dict[str, Any]:
    samplings = [{"max_tokens": 40} | keys for keys in GREEDY]
    asked = {"path": TINY, "engine": {"num_threads": 1} | engine, "prompts": PROMPTS, "samplings": samplings}
    process = FORKS.Process(target=sampling.generate, args=(asked, str(folder / "said.json")))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    return dict(json.loads((folder / "said.json").read_text()))


@pytest.fixture(scope="module")
def vllm_says(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return generate(tmp_path_factory.mktemp("vllm"), kind="vllm", self_test=False, **VLLM_SMALL)


@pytest.fixture(scope="module")
def hf_says(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return generate(tmp_path_factory.mktemp("hf"), kind="hf")


@pytest.mark.parametrize("number", range(2 * len(GREEDY)))
def test_greedy_completions_are_the_same(vllm_says: dict[str, Any], hf_says: dict[str, Any], number: int) -> None:
    assert vllm_says["completions"][number] == hf_says["completions"][number]
    plain = hf_says["completions"][number - number % len(GREEDY)]
    assert not number % len(GREEDY) or hf_says["completions"][number] != plain, "a key without an effect"


@pytest.mark.parametrize("tokenizer", [0, 1])
def test_a_stop_string_ends_any_text_where_it_does_in_vllm(vllm_says: dict[str, Any], tokenizer: int) -> None:
    num_ended, different = vllm_says["stops"][tokenizer]
    assert different == 0
    assert num_ended > sampling.NUM_TEXTS


def test_the_tokens_to_sample_from_are_those_of_vllm(vllm_says: dict[str, Any]) -> None:
    assert vllm_says["kept"] == 0


def test_what_vllm_refuses_is_refused_at_the_start(vllm_says: dict[str, Any], hf_says: dict[str, Any]) -> None:
    assert vllm_says["refused"].startswith("sampling: vLLM refuses this: temperature must be ")
    assert hf_says["refused"] == ""


def test_penalties_are_those_of_vllm(vllm_says: dict[str, Any]) -> None:
    assert vllm_says["penalties"] < 1e-5
