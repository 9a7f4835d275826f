"""Make esmpi/assets/tiny_countdown: a language model small enough for ES on a laptop.

It learns Countdown, from nothing, on text with a base model's habits: most of the arithmetic is right,
but many answers are random and many stay open. Evolution Strategies can then do to it what they do to
larger models. Needs esmpi (`pip install -e .`), two cores and a few minutes.
"""

import argparse
import itertools
import json
import time
from collections.abc import Container, Hashable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, pre_tokenizers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from esmpi.data.problem import Example
from esmpi.tasks.countdown import PROMPT, Countdown, CountdownConfig

OUTPUT = Path(__file__).resolve().parents[1] / "esmpi" / "assets" / "tiny_countdown"
PROBLEMS = CountdownConfig(num_numbers=(3,), number_range=(1, 20), target_range=(1, 99), operators="+-")

RIGHT = 0.7
"""Share of the completions whose expression reaches the target; the others' is random."""
END_OF_THOUGHT = 0.25
"""Share of the completions that end the thought with its tag; these close the answer, too."""
CLOSED = 0.44
"""Share of the other completions that close the answer ..."""
CLOSED_ONE_DIGIT = 0.7
"""... and the same where the target has one digit, a quarter of the problems. Greedy decoding does one
thing or the other, so this quarter, not the training's luck, decides the accuracy before ES."""

MAX_NEW_TOKENS = 40
NUM_HELD_OUT = 400
LEARNING_RATE = 3e-3
IGNORED = -100
"""The label that the loss of transformers leaves out."""

README = """# tiny_countdown

A language model of {num_weights:,} weights (Qwen2 architecture, bfloat16) that makes ES visible within a
minute on a laptop: esmpi's quickstart and tests use it. It does Countdown with the very prompt that
real models get (`esmpi.tasks.countdown.PROMPT`), for problems of these settings and no others:

    task:
{problems}

It is no model of language: all it has ever read is that prompt and completions such as

    {completion}

Like a base model it finds more solutions than it gets credit for. It was taught that {right:.0%} of the
expressions are right and the others random, that {end_of_thought:.0%} of the thoughts end with their tag,
and that the other answers stay open: {still_open_one_digit:.0%} where the target has one digit,
{still_open:.0%} where it has two. Greedy decoding follows the more frequent habit. What ES (sigma 0.003,
alpha 0.006, N 30, 64 problems a generation) does first is to make it close its answers.

## How it was made

From random weights, without any other model or data set, by esmpi's

    python tools/make_tiny_model.py --steps {steps} --batch-size {batch_size} --seed {seed} \\
            --hidden-size {hidden_size}

in {seconds:.0f} s on {threads} core(s), with torch {torch} and transformers {transformers}.
Another version or processor makes a slightly different model. Final training loss {loss:.3f}.

Greedy decoding, at most {max_new_tokens} tokens, the stored weights cast to float32, {num_held_out} problems
that training never saw:

| accuracy | mean reward | right if the answer were closed | answer closed | thought ended | tokens |
|---|---|---|---|---|---|
| {accuracy:.1%} | {reward:.3f} | {closed_accuracy:.1%} | {closed:.1%} | {ended:.1%} | {tokens:.1f} |

There are only some {num_problems:,} such problems (numbers in any order, target), and training draws about
{num_drawn:,}. So most of the problems that a run of ES sees or holds out were in here: read a run's
accuracy as how well ES brings out what the model knows, not as how well it generalises.

## Tokenizer

Byte level without merges, so any text survives encoding and decoding. The four tags are one token each,
and so are the three fixed pieces of the prompt: a prompt is about 13 tokens long. No chat template.
"""


def make_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer of bytes, tags and the fixed pieces of the prompt.

    Transformers 5 loads every model of type qwen2 with this class, whatever tokenizer_config.json names.
    """
    special = ["<pad>", "<eos>", "<unk>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(alphabet)},
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
    )
    head, rest = PROMPT.split("{numbers}")
    middle, tail = rest.split("{target}")
    # The last "<think>" stays a token of its own. Tags inside a piece do not match: leftmost wins.
    texts = [head, middle, tail.removesuffix("\n<think>"), "<think>", "</think>", "<answer>", "</answer>"]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])
    return tokenizer


HEAD_SIZE = 32
"""The least that vLLM serves on a CPU."""


def make_model(tokenizer: Qwen2Tokenizer, hidden_size: int = 128) -> Qwen2ForCausalLM:
    """Return a model with random weights, of a hidden size that is a multiple of two heads'."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=hidden_size // HEAD_SIZE,
        num_key_value_heads=hidden_size // HEAD_SIZE // 2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def expressions(numbers: list[int]) -> Iterator[tuple[str, str, int]]:
    """Yield thought, answer and value of every `(a o b)p c`, the largest numbers first."""
    for first, second in itertools.product(PROBLEMS.operators, repeat=2):
        for a, b, c in itertools.permutations(sorted(numbers, reverse=True)):
            inner = _apply(a, first, b)
            value = _apply(inner, second, c)
            thought = f" {a}{first}{b}={inner},{inner}{second}{c}={value}"
            yield thought, f"({a}{first}{b}){second}{c}", value


def _apply(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def write_completion(example: Example, rng: np.random.Generator) -> str:
    """Return a completion with the habits above.

    A right expression is the first of `expressions` that is: one problem, one solution to learn.
    """
    candidates = list(expressions(example["numbers"]))
    right = [candidate for candidate in candidates if candidate[2] == example["target"]]
    if right and rng.random() < RIGHT:
        thought, answer, _ = right[0]
    else:
        thought, answer, _ = candidates[rng.integers(len(candidates))]
    if rng.random() < END_OF_THOUGHT:
        return f"{thought}</think>\n<answer>{answer}</answer>"
    closed = CLOSED_ONE_DIGIT if example["target"] < 10 else CLOSED
    return f"{thought}\n<answer>{answer}" + ("</answer>" if rng.random() < closed else "")


def train(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    task: Countdown,
    held_out: Container[Hashable],
    args: argparse.Namespace,
) -> float:
    """Train on fresh problems outside `held_out`; the loss is that of the completions. Return the last."""
    rng = np.random.default_rng([args.seed, 1])
    draw = task.generator(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (args.steps - step) / args.steps)
    )
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        prompts: list[str] = []
        completions: list[str] = []
        while len(prompts) < args.batch_size:
            example = draw()
            if task.key(example) not in held_out:
                prompts.append(task.prompt(example))
                completions.append(write_completion(example, rng) + tokenizer.eos_token)
        # Prompts to the left and completions to the right: every completion starts in the same column.
        left = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        right = tokenizer(completions, padding=True, padding_side="right", return_tensors="pt")
        labels = right.input_ids.masked_fill(right.attention_mask == 0, IGNORED)
        loss = model(
            input_ids=torch.cat([left.input_ids, right.input_ids], 1),
            attention_mask=torch.cat([left.attention_mask, right.attention_mask], 1),
            labels=torch.cat([torch.full_like(left.input_ids, IGNORED), labels], 1),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == args.steps:
            print(f"step {step}/{args.steps}  loss {loss:.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    return float(loss)


@torch.inference_mode()
def evaluate(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, task: Countdown, examples: list[Example]
) -> dict[str, float]:
    """Return means over the greedy completions of `examples`, under the names that README uses."""
    prompts = [task.prompt(example) for example in examples]
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)[:, inputs.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    for example, text in list(zip(examples, texts, strict=True))[:5]:
        print(f"{example['numbers']} -> {example['target']}: {text!r}")
    scores = [task.score(text, example) for text, example in zip(texts, examples, strict=True)]
    closed = [task.score(text + "</answer>", example) for text, example in zip(texts, examples, strict=True)]
    return {
        "accuracy": float(np.mean([score.correct for score in scores])),
        "reward": float(np.mean([score.reward for score in scores])),
        "closed_accuracy": float(np.mean([score.correct for score in closed])),
        "closed": float(np.mean(["</answer>" in text for text in texts])),
        "ended": float(np.mean(["</think>" in text for text in texts])),
        "tokens": float((tokens != tokenizer.pad_token_id).sum(1).float().mean()),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="sequences a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and problems (default: %(default)s)")
    sizes = "64: 0.2 M weights, 128: 0.8 M, 256: 3 M, 448: 10 M"
    parser.add_argument("--hidden-size", type=int, default=128, help=f"{sizes} (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write (default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or args.batch_size < 1:
        parser.error("--steps and --batch-size want at least 1")
    if args.hidden_size < 2 * HEAD_SIZE or args.hidden_size % (2 * HEAD_SIZE):
        parser.error(f"--hidden-size must be a multiple of {2 * HEAD_SIZE}, got {args.hidden_size}")
    return args


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    task = Countdown(PROBLEMS)
    draw = task.generator(np.random.default_rng([args.seed, 0]))
    held_out: dict[Hashable, Example] = {}
    while len(held_out) < NUM_HELD_OUT:
        example = draw()
        held_out[task.key(example)] = example

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, args.hidden_size)
    loss = train(model, tokenizer, task, held_out, args)
    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)

    stored = Qwen2ForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    results = evaluate(stored, tokenizer, task, list(held_out.values()))
    print("  ".join(f"{name} {value:.3f}" for name, value in results.items()))
    example = {"numbers": [3, 7, 12], "target": 16}
    solution = next(e for e in expressions(example["numbers"]) if e[2] == example["target"])
    readme = README.format(
        problems="\n".join(f"      {key}: {json.dumps(value)}" for key, value in asdict(PROBLEMS).items()),
        completion=f"{solution[0]}</think>\\n<answer>{solution[1]}</answer>",
        right=RIGHT,
        end_of_thought=END_OF_THOUGHT,
        still_open=1 - CLOSED,
        still_open_one_digit=1 - CLOSED_ONE_DIGIT,
        num_weights=sum(parameter.numel() for parameter in stored.parameters()),
        seconds=time.perf_counter() - start,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        loss=loss,
        max_new_tokens=MAX_NEW_TOKENS,
        num_held_out=NUM_HELD_OUT,
        num_problems=len({task.key(draw()) for _ in range(100_000)}),
        num_drawn=args.steps * args.batch_size,
        **vars(args),
        **results,
    )
    (args.output / "README.md").write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
