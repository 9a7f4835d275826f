"""Train with GRPO of TRL on the model, problems, reward and token limit of an esmpi config; print its curve.

    python tools/experiments/curve_grpo.py CONFIG --steps 60 --every 6 --learning-rate 3e-5 [section.key=value ...]

Points are those of curve_es.py. Completions are sampled at temperature 1, 64 a step, 8 of each prompt. Everything else
is TRL's default, without a reference model, except that the learning rate is constant, that all is computed in float32,
and that activations are kept, which takes less time and more memory: `--checkpointing` computes them again, as TRL does
by default. Evaluation is greedy, as esmpi's. Needs TRL: pip install trl
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from esmpi.config.reader import load_config
from esmpi.data.problem import Example
from esmpi.data.problems import load_problems
from esmpi.model.find import fetch_model
from esmpi.tasks import Task, make_task

COMPLETIONS, SAMPLES = 64, 8
"""Of a step, and of a prompt. An evaluation also has so many completions in a batch."""


def main() -> None:
    """Train, and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("keys", nargs="*", metavar="section.key=value")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between evaluations")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, arguments.keys)
    task = make_task(config.task)
    problems = load_problems(config.data, task, config.run.seed, {})
    folder = fetch_model(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    curve = Curve(model, tokenizer, task, problems.held_out, config.sampling.max_tokens, arguments.every)
    train = problems.train

    def reward(completions: list[str], completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        curve.tokens += sum(map(len, completion_ids))
        return [task.score(text, train[i]).reward or 0.0 for text, i in zip(completions, number, strict=True)]

    with tempfile.TemporaryDirectory() as output:
        keys = trl.GRPOConfig(
            output_dir=output,
            use_cpu=True,
            seed=config.run.seed,
            per_device_train_batch_size=COMPLETIONS,
            num_generations=SAMPLES,
            max_completion_length=config.sampling.max_tokens,
            beta=0.0,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant",
            max_steps=arguments.steps,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=arguments.checkpointing,
            disable_tqdm=True,
        )
        rows = [{"prompt": task.prompt(example), "number": i} for i, example in enumerate(train)]
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=keys,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[curve],
        )
        trainer.train()
    print(json.dumps(curve.points))


class Curve(TrainerCallback):  # type: ignore[misc]
    """Evaluates every few steps, and counts what training costs without that."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, held_out: Any, max_tokens: int, every: int):
        self.points: list[dict[str, Any]] = []
        self.tokens = 0
        self._model, self._tokenizer, self._task = model, tokenizer, task
        self._held_out, self._max_tokens, self._every = list(held_out), max_tokens, every
        self._spent = self._began = (0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate the base model."""
        self._add(0)
        self._began = _clocks()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate if it is due."""
        if state.global_step % self._every == 0:
            now = _clocks()
            wall, processor = (self._spent[i] + now[i] - self._began[i] for i in (0, 1))
            self._spent = wall, processor
            self._add(state.global_step)
            self._began = _clocks()

    def _add(self, step: int) -> None:
        scores = [self._task.score(text, example) for text, example in self._complete()]
        self.points.append(
            {
                "step": step,
                "completions": COMPLETIONS * step,
                "tokens": self.tokens,
                "seconds": round(self._spent[0], 2),
                "processor_seconds": round(self._spent[1], 2),
                "accuracy": round(sum(bool(score.correct) for score in scores) / len(scores), 4),
                "reward": round(sum(score.reward or 0.0 for score in scores) / len(scores), 4),
            }
        )

    @torch.inference_mode()
    def _complete(self) -> Iterator[tuple[str, Example]]:
        """Yield the greedy completions of the held-out problems."""
        was_training = self._model.training
        self._model.eval()
        for start in range(0, len(self._held_out), COMPLETIONS):
            examples = self._held_out[start : start + COMPLETIONS]
            prompts = [self._task.prompt(example) for example in examples]
            inputs = self._tokenizer(prompts, padding=True, return_tensors="pt")
            made = self._model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=self._max_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )[:, inputs.input_ids.shape[1] :]
            yield from zip(self._tokenizer.batch_decode(made, skip_special_tokens=True), examples, strict=True)
        self._model.train(was_training)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
