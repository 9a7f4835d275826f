"""Sampling: penalties and filters against definitions written out in NumPy, stop strings against a search in texts."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from support import requests
from test_hf_engine import PROMPTS, folder, load
from transformers import AutoTokenizer, LogitsProcessorList

from esmpi.config.problems import SamplingConfig
from esmpi.engines import Completion, Request, Sampling
from esmpi.engines.base import check_tokens, render_chat
from esmpi.engines.hf.engine import HfEngine
from esmpi.engines.hf.processors import bad_words_ids, processors
from esmpi.engines.hf.stop import StopStrings
from esmpi.errors import UserError
from esmpi.noise import member_seed
from esmpi.noise.format import Noise
from esmpi.weights.model_weights import Perturbation

VOCABULARY = 40
PAD, ENDS = 0, [1, 7]


@pytest.fixture(scope="module")
def engine() -> HfEngine:
    return load()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder())


# ---- the scores ----


def defined_scores(
    scores: np.ndarray, prompt: list[int], new: list[int], sampling: Sampling, words: list[list[int]]
) -> np.ndarray:
    """Return what vLLM's documentation says of one row's scores before the temperature, token by token."""
    scores = scores.astype(np.float64).copy()
    for *before, last in words:
        if len(before) <= len(new) and new[len(new) - len(before) :] == before:
            scores[last] = -np.inf
    if len(new) < sampling.min_tokens:
        scores[[*ENDS, *sampling.stop_token_ids]] = -np.inf
    for token in range(len(scores)):
        if token in prompt or token in new:
            factor = 1 / sampling.repetition_penalty if scores[token] > 0 else sampling.repetition_penalty
            scores[token] *= factor
        scores[token] -= sampling.frequency_penalty * new.count(token)
        scores[token] -= sampling.presence_penalty * (token in new)
    return scores


def defined_chances(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probability with which a token is chosen, from scores before the temperature."""
    chances = np.exp((scores - scores.max()) / sampling.temperature)
    chances /= chances.sum()
    chances[chances < sampling.min_p * chances.max()] = 0
    if sampling.top_k:
        chances[chances < np.sort(chances)[::-1][: sampling.top_k][-1]] = 0
    chances /= chances.sum()
    total, kept = 0.0, []
    for token in np.argsort(-chances, kind="stable"):
        if total >= sampling.top_p:
            break
        kept.append(token)
        total += chances[token]
    chosen = np.zeros_like(chances)
    chosen[kept] = chances[kept] / chances[kept].sum()
    return chosen


def padded(prompts: list[list[int]], new: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a batch and the mask of its prompts, padded on the left."""
    length = max(map(len, prompts))
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts])
    tokens = [[PAD] * (length - len(one)) + one + made for one, made in zip(prompts, new, strict=True)]
    return torch.tensor(tokens), mask


class Numbers:
    """A tokenizer for which a text is the number of a token, or several with blanks between."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(word) for word in text.split()]


CASES = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 1.3},
    {"frequency_penalty": 0.8},
    {"frequency_penalty": -0.8, "presence_penalty": 0.5},
    {"min_tokens": 4},
    {"min_tokens": 30, "stop_token_ids": (9, 3)},
    {"bad_words": ("5", "6 8", "8 8 2")},
    {
        **{"repetition_penalty": 1.4, "presence_penalty": -0.7, "frequency_penalty": 0.3, "min_tokens": 12},
        **{"bad_words": ("5 5", "1")},
    },
]


@pytest.mark.parametrize("keys", CASES, ids="+".join)
def test_scores_are_those_of_the_definitions(keys: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    sampling = Sampling(max_tokens=40, **keys)
    words = bad_words_ids(Numbers(), sampling.bad_words)
    changed = 0
    for num_new in (0, 1, 2, 4, 5, 20):
        # few tokens, so that they repeat; the padding is one of them, and one prompt has it as a token of its own
        prompts = [random.integers(2, 12, size).tolist() for size in (1, 9, 4, 6)]
        prompts[1][3] = PAD
        new = [random.integers(2, 10, num_new).tolist() for _ in prompts]
        new[2][-3:] = [8, 8, 8][: len(new[2][-3:])]
        scores = torch.from_numpy(random.normal(0, 2, (4, VOCABULARY)).astype(np.float32))
        scores[0, 4] = -torch.inf
        ids, mask = padded(prompts, new)
        asked = requests(["?"] * 4)
        found = processors(asked, sampling, mask, [*ENDS, *sampling.stop_token_ids], Numbers())
        given = scores.clone()
        made = LogitsProcessorList(found)(ids, given)
        assert torch.equal(given, scores), "the engine's scores are not to be changed in place"
        for row in range(4):
            expected = defined_scores(scores[row].numpy(), prompts[row], new[row], sampling, words)
            np.testing.assert_allclose(made[row].numpy(), expected, rtol=2e-6, atol=2e-6)
            # alone, without padding, to the bit
            ids_alone, mask_alone = padded([prompts[row]], [new[row]])
            alone = processors(asked[row : row + 1], sampling, mask_alone, [*ENDS, *sampling.stop_token_ids], Numbers())
            assert torch.equal(LogitsProcessorList(alone)(ids_alone, scores[row : row + 1])[0], made[row])
        changed += int((made != scores).any())
    assert changed >= 2, "a penalty that changes no score"


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    assert processors(requests(["?"]), Sampling(max_tokens=3), torch.ones(1, 2), ENDS, Numbers()) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_p": 0.6},
        {"top_k": 7, "min_p": 0.05, "top_p": 0.8},
        {"top_k": 4, "top_p": 0.99},
        {"min_p": 0.1, "top_p": 0.7, "repetition_penalty": 1.5, "min_tokens": 3},
    ],
    ids=lambda keys: "+".join(f"{name}={value}" for name, value in keys.items()),
)
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_tokens_are_chosen_by_the_probabilities_of_the_definitions(keys: dict[str, Any], temperature: float) -> None:
    random = np.random.default_rng(3)
    sampling = Sampling(max_tokens=5, temperature=temperature, **keys)
    scores = random.normal(0, 1.5, VOCABULARY).astype(np.float32)
    scores[11] = scores[12] = np.sort(scores)[-5]  # a tie at the place where top_k=5 cuts
    prompt, new, count = [4, 5, 11], [11, 2], 5000
    ids, mask = padded([prompt] * count, [new] * count)
    asked = [Request(prompt="", seed=seed) for seed in range(count)]
    found = LogitsProcessorList(processors(asked, sampling, mask, ENDS, Numbers()))
    chosen = found(ids, torch.from_numpy(scores).repeat(count, 1)).argmax(-1)
    shares = np.bincount(chosen.numpy(), minlength=VOCABULARY) / count
    expected = defined_chances(defined_scores(scores, prompt, new, sampling, []), sampling)
    assert not shares[expected == 0].any(), "a token that is ruled out"
    np.testing.assert_allclose(shares, expected, atol=4.5 * math.sqrt(0.25 / count))


def test_bad_words_have_two_forms(tokenizer: Any) -> None:
    """A blank is a token of its own here, so the second form has more tokens, and is not one of its own."""
    assert bad_words_ids(tokenizer, ["12", " <answer>"]) == [tokenizer.encode("12"), tokenizer.encode("<answer>")]

    class Blanks:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return {"a": [1], " a": [2], "bc": [3, 4], " bc": [5, 4], "d": [6], " d": [6], "e": [7], " e": [8, 9]}[text]

    assert bad_words_ids(Blanks(), ["a", " bc", "d", "e"]) == [[1], [2], [3, 4], [5, 4], [6], [7]]


# ---- the engine ----

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 2.0},
    {"min_tokens": 33},
    {"bad_words": ("9,", "<answer>(1", "=")},
]


@pytest.mark.parametrize("keys", PENALTIES, ids="+".join)
def test_greedy_decoding_takes_the_best_of_the_defined_scores(
    engine: HfEngine, tokenizer: Any, keys: dict[str, Any]
) -> None:
    engine.weights.restore()
    sampling = Sampling(max_tokens=36, **keys)
    words = bad_words_ids(tokenizer, sampling.bad_words)
    made = engine.generate(requests(PROMPTS), sampling)
    plain = engine.generate(requests(PROMPTS), Sampling(max_tokens=36))
    assert [one.tokens for one in made] != [one.tokens for one in plain], "a penalty without an effect"
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids, new = tokenizer(prompt)["input_ids"], []
        for token in completion.tokens:
            with torch.no_grad():
                scores = engine._model(torch.tensor([ids + new])).logits[0, -1].numpy()
            expected = defined_tiny_scores(scores, ids, new, sampling, words)
            assert expected[token] >= expected.max() - 1e-4
            new.append(token)
        assert completion.truncated == (new[-1] != tokenizer.eos_token_id)
        assert sampling.min_tokens < len(new) or completion.truncated


def defined_tiny_scores(
    scores: np.ndarray, prompt: list[int], new: list[int], sampling: Sampling, words: list[list[int]]
) -> np.ndarray:
    """As `defined_scores`, for the tiny model, which has one end-of-text token."""
    expected = defined_scores(scores, prompt, new, replace(sampling, min_tokens=0), words)
    if len(new) < sampling.min_tokens:
        expected[1] = -np.inf
    return expected


def text_of(tokenizer: Any, tokens: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def cut(tokenizer: Any, whole: Completion, sampling: Sampling) -> tuple[int, str, bool]:
    """Return tokens, text and `truncated` of a completion with stop strings, from the same without."""
    before = text_of(tokenizer, whole.tokens[: sampling.min_tokens])
    for count in range(sampling.min_tokens + 1, whole.num_tokens + 1):
        text = text_of(tokenizer, whole.tokens[:count])
        ends = [
            (end, begin, text[begin:end])
            for begin in range(len(text))
            for end in range(max(begin, len(before)) + 1, len(text) + 1)
            if text[begin:end] in sampling.stop
        ]
        if ends and whole.tokens[count - 1] != 1:
            end = min(ends)[0]
            stop = next(one for one in sampling.stop if any(found[2] == one and found[0] == end for found in ends))
            return count, text[: end if sampling.include_stop else end - len(stop)], False
        before = text
    return whole.num_tokens, whole.text, whole.truncated


STOPS: list[tuple[str, ...]] = [
    ("</answer>",),
    ("swer>",),  # begins inside a token and ends with it
    ("</ans",),  # ends inside a token
    ("\n<a",),  # is spread over two, and ends inside the second
    ("r>(1",),  # begins inside a token, and is spread over three
    ("+",),
    ("=1", ")-", "nowhere"),
    ("r>", "answer>", "</answer>"),  # all end at the same place: the first counts
    ("answer>", "r>"),
    ("1", "2", "3", "4", "5"),
    ("é", "a", "\x01"),  # of what a broken model says
]


@pytest.mark.parametrize("stop", STOPS, ids="|".join)
@pytest.mark.parametrize("include_stop", [False, True])
def test_a_stop_string_ends_a_completion_where_it_is_complete(
    engine: HfEngine, tokenizer: Any, stop: tuple[str, ...], include_stop: bool
) -> None:
    num_stopped = 0
    for scale, temperature, min_tokens in ((0.0, 0.0, 0), (0.0, 0.8, 9), (0.01, 1.0, 0), (0.06, 1.0, 3)):
        engine.weights.perturb([Perturbation(member_seed(1, 2, 3), scale)])
        plain = Sampling(max_tokens=40, temperature=temperature, min_tokens=min_tokens)
        sampling = replace(plain, stop=stop, include_stop=include_stop)
        whole = engine.generate(requests(PROMPTS), plain)
        made = engine.generate(requests(PROMPTS), sampling)
        for one, other in zip(made, whole, strict=True):
            num_tokens, text, truncated = cut(tokenizer, other, sampling)
            assert (one.num_tokens, one.text, one.truncated) == (num_tokens, text, truncated)
            assert one.tokens == other.tokens[:num_tokens]
            num_stopped += num_tokens < other.num_tokens
        assert [len(one) for one in engine.logprobs(PROMPTS, made)] == [one.num_tokens for one in made]
    engine.weights.restore()
    assert num_stopped


def test_generation_ends_when_all_rows_have(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.weights.restore()
    steps = []
    forward = engine._model.forward
    monkeypatch.setattr(engine._model, "forward", lambda *args, **more: steps.append(1) or forward(*args, **more))
    made = engine.generate(requests(PROMPTS), Sampling(max_tokens=40, stop=("<answer>",)))
    assert len(steps) == max(one.num_tokens for one in made) < 40
    assert len({one.num_tokens for one in made}) > 1, "rows that end at different steps"


def test_a_stop_token_ends_a_completion_as_an_end_of_text_token_does(engine: HfEngine, tokenizer: Any) -> None:
    engine.weights.restore()
    answer = tokenizer.convert_tokens_to_ids("<answer>")
    whole = engine.generate(requests(PROMPTS), Sampling(max_tokens=40))
    for one, other in zip(
        engine.generate(requests(PROMPTS), Sampling(max_tokens=40, stop_token_ids=(answer, 5))), whole, strict=True
    ):
        assert one.num_tokens == other.tokens.index(answer) + 1
        assert one.text == other.text.partition("<answer>")[0]
        assert one.tokens == other.tokens[: one.num_tokens]
        assert not one.truncated


FULL: dict[str, Any] = {
    **{"max_tokens": 40, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.1},
    **{"min_tokens": 6, "bad_words": ("1,1",), "stop": ("</answer>", "5\n"), "include_stop": True},
}


@pytest.mark.parametrize("keys", [{}, {"temperature": 0.9, "top_k": 12, "min_p": 0.02, "top_p": 0.95}])
def test_a_completion_depends_on_its_own_request(engine: HfEngine, keys: dict[str, Any]) -> None:
    """Not on the prompts beside it, their padding, or the members that share its wave."""
    sampling = Sampling(**FULL, **keys)
    asked = requests(PROMPTS, 1)
    engine.weights.restore()
    together = engine.generate(asked, sampling)
    assert [engine.generate([request], sampling)[0] for request in asked] == together
    assert engine.generate(asked[::-1], sampling)[::-1] == together
    wave = [Perturbation(member_seed(0, 0, i), 0.02, Noise(rank=1)) for i in range(3)]
    engine.perturb(wave)
    made = engine.generate([replace(one, member=i) for i in range(3) for one in asked], sampling)
    some = engine.generate([replace(asked[i], member=member) for member, i in ((2, 0), (0, 1), (2, 3))], sampling)
    assert some == [made[8], made[1], made[11]]
    for i, member in enumerate(wave):
        engine.weights.perturb([member])
        assert engine.generate(asked, sampling) == made[4 * i : 4 * i + 4] != together
    engine.weights.restore()


def test_text_comes_out_character_by_character(tokenizer: Any) -> None:
    """Bytes of a character that is not complete are no text yet, and a stop string of it is found when it is."""
    tokens = tokenizer.encode("aé€😀b€", add_special_tokens=False)
    assert len(tokens) == 1 + 2 + 3 + 4 + 1 + 3
    for stop, num_tokens, text in (("é", 3, "a"), ("😀", 10, "aé€"), ("b€", 14, "aé€😀"), ("€😀b", 11, "aé")):
        criterion = StopStrings(tokenizer, Sampling(max_tokens=20, stop=(stop,)), [1], 2, 3)
        rows = [[0, 5, 6, *tokens], [4, 5, 6, *([1] + [0] * 13)]]
        for length in range(4, len(rows[0]) + 1):
            done = criterion(torch.tensor(rows)[:, :length], torch.zeros(0))
            assert done.tolist() == [length - 3 >= num_tokens, True]
        assert criterion.stopped == {0: (num_tokens, text)}


# ---- what is refused, and how the config is read ----


def test_evaluation_has_the_same_keys_at_its_own_temperature() -> None:
    config = SamplingConfig(
        temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.2, stop=("x",), min_tokens=3
    )
    trained = Sampling.at(config.temperature, config)
    assert all(getattr(trained, field.name) == getattr(config, field.name) for field in fields(Sampling))
    assert Sampling.at(1.1, config) == replace(trained, temperature=1.1)
    assert Sampling.at(0, config) == replace(trained, temperature=0, top_p=1, top_k=0, min_p=0)


def test_defaults_are_plain_greedy_decoding() -> None:
    assert Sampling.at(0, SamplingConfig()) == Sampling(max_tokens=1024)
    assert SamplingConfig(top_k=None) == SamplingConfig()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stop": ("x<eos>",)}, r"sampling\.stop: 'x<eos>' contains a special token, .*stop_token_ids=\[1\]"),
        ({"stop_token_ids": (3, 266)}, r"sampling\.stop_token_ids: this model has tokens 0 to 265, not 266"),
        ({"stop_token_ids": (-1,)}, r"sampling\.stop_token_ids: this model has tokens 0 to 265, not -1"),
    ],
)
def test_what_means_nothing_to_the_tokenizer_is_refused(engine: HfEngine, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine.check(Sampling(max_tokens=3, **keys))
    engine.check(Sampling(max_tokens=3, stop=("</answer>",), stop_token_ids=(0, 265), bad_words=("a",)))


def test_a_tokenizer_without_what_is_needed_is_refused(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return []

        def __len__(self) -> int:
            return 3

    with pytest.raises(UserError, match=r"sampling\.bad_words: this model has no tokens for '☃'"):
        check_tokens(Silent(), Sampling(max_tokens=3, bad_words=("☃",)))
    monkeypatch.setattr(type(engine.tokenizer), "is_fast", False)
    engine.check(Sampling(max_tokens=3))
    with pytest.raises(UserError, match=r"sampling\.stop: engine hf needs a fast tokenizer"):
        engine.check(Sampling(max_tokens=3, stop=("x",)))


THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)


def test_variables_reach_the_chat_template(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "3+4="}]
    monkeypatch.setattr(engine.tokenizer, "chat_template", THINKING)
    assert engine.render(messages) == engine.render(messages, enable_thinking=True) == "3+4="
    assert engine.render(messages, enable_thinking=False) == "3+4=<think></think>"
    assert engine.render("plain") == "plain"
    message = r"task\.chat_template_kwargs: the model's chat template does not read thinking: remove it"
    with pytest.raises(UserError, match=message):
        render_chat(engine.tokenizer, messages, {"thinking": False})
