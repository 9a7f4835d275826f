"""Tasks whose answer is a number or a word: gsm8k, multiplication, conciseness."""

import numpy as np
import pytest
from support import ROOT
from test_tasks import make

from esmpi.config.differences import differences
from esmpi.config.reader import load_config
from esmpi.data.batch import batch
from esmpi.data.problems import load_problems
from esmpi.tasks import Example
from esmpi.tasks.multiplication import MultiplicationConfig

GSM: Example = {"question": "How much?", "answer": "Half of 48 is <<48/2=24>>24.\n#### 1,072"}


@pytest.mark.parametrize(
    ("completion", "correct", "parsed"),
    [
        ("#### 1072", True, True),
        ("24\n#### 1,072", True, True),
        ("#### $1072.00", True, True),
        ("#### The answer is 1072.\n\nQuestion: how many? 5", True, True),
        ("#### 24 #### 1072", True, True),
        (r"so \boxed{1072}", True, True),
        ("#### 1073", False, True),
        ("#### -1072", False, True),
        ("#### 1072 or 1073", False, True),
        ("#### none", False, False),
        ("####", False, False),
        ("1072", False, False),
        ("", False, False),
    ],
)
def test_gsm8k_marked(completion: str, correct: bool, parsed: bool) -> None:
    score = make("gsm8k").score(completion, GSM)
    assert (score.reward, score.correct, score.parsed) == (float(correct), correct, parsed)


def test_gsm8k_last_number() -> None:
    task = make("gsm8k", answer="last_number")
    assert task.score("It is 5, or rather 1072.", GSM).correct
    assert not task.score("1072 - 5", GSM).correct
    assert not task.score("none", GSM).parsed


@pytest.mark.parametrize("answer", [1072, "1072", 1072.0, "#### 1072", "x\n#### 1,072"])
def test_gsm8k_gold_answers_in_any_dress(answer: object) -> None:
    task, example = make("gsm8k"), {"question": "How much?", "answer": answer}
    task.check(example)
    assert task.score("#### 1072", example).correct


def test_gsm8k_prompt_asks_for_the_mark() -> None:
    prompt = make("gsm8k").prompt(GSM)
    assert prompt.startswith("How much?\n")
    assert "####" in prompt
    assert "1,072" not in prompt


@pytest.mark.parametrize(
    ("completion", "right", "correct"),
    [
        ("56088", 1, True),
        ("123 * 456 = 56,088.", 1, True),
        ("56088.0", 1, True),
        ("56087", 0.8, False),
        ("6088", 0.8, False),
        ("156088", 5 / 6, False),
        ("-56088", 0, False),
        ("56088.5", 0, False),
        ("56088 + 1", 0, False),
        ("none", 0, False),
    ],
)
def test_multiplication(completion: str, right: float, correct: bool) -> None:
    example = {"a": 123, "b": 456}
    for credit in (False, True):
        score = make("multiplication", partial_credit=credit).score(completion, example)
        assert score.correct == correct
        assert score.figures["digits_right"] == pytest.approx(right)
        assert score.reward == pytest.approx(1 if correct else right / 2 * credit)
        assert score.parsed == (completion != "none")


@pytest.mark.parametrize("digits", [1, 2, 3, 18])
def test_multiplication_draws_factors_of_so_many_digits(digits: int) -> None:
    task = make("multiplication", digits=digits)
    draw = task.generator(np.random.default_rng(0))
    examples = [draw() for _ in range(400)]
    assert {len(str(example[name])) for example in examples for name in "ab"} == {digits}
    assert {str(example["a"])[0] for example in examples} == set("123456789")
    for example in examples:
        task.check(example)
        assert task.score(str(example["a"] * example["b"]), example).correct
    assert "Compute 12 * 34." in task.prompt({"a": 12, "b": 34})


def test_multiplication_knows_a_problem_either_way_round() -> None:
    key = make("multiplication").key
    assert key({"a": 3, "b": 5}) == key({"a": 5, "b": 3}) != key({"a": 3, "b": 6})


@pytest.mark.parametrize("digits", [0, 19])
def test_impossible_digits_are_refused(digits: int) -> None:
    with pytest.raises(ValueError, match="digits"):
        MultiplicationConfig(digits=digits)


def test_multiplication_has_new_prompts_in_each_generation_of_its_config() -> None:
    config = load_config(ROOT / "configs" / "multiplication.yaml")
    task = make("multiplication")
    problems = load_problems(config.data, task, config.run.seed)
    seen = [
        task.key(example)
        for generation in range(config.es.generations)
        for example in batch(config.data, problems.train, config.run.seed, generation)
    ]
    assert len(seen) == len(set(seen)) == config.es.generations * config.data.batch_size
    assert not set(seen) & {task.key(example) for example in problems.held_out}


@pytest.mark.parametrize(
    ("completion", "reward", "scaled", "correct"),
    [
        ("8", 0, 1, True),
        ("9", 0, 1, False),  # the length is right, the answer is not
        ("", -1, 0.9995, False),
        ("The answer is 8.", -15, 0.9925, True),
        ("18", -1, 0.9995, False),
        ("x" * 2001, -2000, 0, False),
        (" 8", -1, 0.9995, True),
        ("\U0001f600", 0, 1, False),  # a character, however many bytes
    ],
)
def test_conciseness(completion: str, reward: float, scaled: float, correct: bool) -> None:
    score = make("conciseness").score(completion, {"question": "Solve: 3 + 5 =", "answer": "8"})
    assert score.reward == reward
    assert score.correct == correct
    assert score.figures["scaled_reward"] == pytest.approx(scaled)
    assert score.parsed == bool(completion)


def test_conciseness_reads_words_in_capitals_or_not() -> None:
    score = make("conciseness").score("no, PENGUINS cannot", {"question": "Can penguins fly?", "answer": "No"})
    assert score.correct


def test_conciseness_has_the_papers_problems() -> None:
    task = make("conciseness")
    assert task.problems("train") == [
        {"question": "Solve: 3 + 5 =", "answer": "8"},
        {"question": "If all birds can fly and penguins are birds, can penguins fly?", "answer": "No"},
    ]
    answers = [example["answer"] for example in task.problems("eval")]
    assert answers == ["Paris", "84", "True", "10", "Hola", "30", "Red", "7"]
    for part in ("train", "eval"):
        for example in task.problems(part):  # type: ignore[arg-type]
            task.check(example)
            assert task.prompt(example) == example["question"]
            assert task.score(f"It is {example['answer'].lower()}!", example).correct


@pytest.mark.parametrize(
    ("name", "population_size", "generations", "alpha", "batch_size", "max_tokens"),
    [
        ("conciseness", 30, 1000, 5e-4, 2, 100),
        ("countdown", 30, 500, 5e-4, 200, 1024),
        ("math", 30, 336, 5e-4, 1024, 3000),
        ("multiplication", 13, 65, 5e-4, 13, 512),
    ],
)
def test_configs_have_the_published_settings(
    name: str, population_size: int, generations: int, alpha: float, batch_size: int, max_tokens: int
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert (config.es.population_size, config.es.generations) == (population_size, generations)
    assert (config.es.sigma, config.es.step_size) == (1e-3, alpha)
    assert (config.data.batch_size, config.sampling.max_tokens) == (batch_size, max_tokens)
    assert config.sampling.temperature == 0


def test_countdown_with_a_stop_string_is_countdown_otherwise() -> None:
    plain, stop = (load_config(ROOT / "configs" / f"{name}.yaml").to_dict() for name in ("countdown", "countdown_stop"))
    changed = {one.name: one.after for one in differences(plain, stop)}
    assert changed == {"run.name": "countdown_stop", "sampling.stop": ["</answer>"], "sampling.include_stop": True}
