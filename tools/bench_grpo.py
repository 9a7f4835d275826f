"""Measure seconds of training to an accuracy: Evolution Strategies against GRPO of TRL. The last line is a JSON object.

The work is the quickstart's: its model, prompts, reward and held-out problems, on the same two cores. Members are
evaluated in waves of low-rank noise, one by one with the same noise, and one by one with noise of full rank, on two MPI
ranks with a thread each. GRPO trains in one process with two threads, with TRL's defaults but for a constant learning
rate, and 64 completions a step, 8 of each prompt. Evaluations do not count. The methods take turns, seed by seed.

Needs TRL: pip install trl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart.yaml"
METHODS = {
    "waves": ["es.noise=low_rank"],
    "low rank, one by one": ["es.noise=low_rank", "engine.wave_size=1"],
    "full rank": [],
}


def main() -> None:
    """Run the benchmark, or, in a process of its own, GRPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="run seeds (default: %(default)s)")
    parser.add_argument("--accuracy", type=float, default=0.78, help="to reach (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="of a generation (default: %(default)s)")
    parser.add_argument("--generations", type=int, default=24, help="at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of GRPO at most (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="of GRPO (default: %(default)s)")
    parser.add_argument("--grpo", type=int, metavar="SEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grpo is not None:
        print(json.dumps(grpo(arguments.grpo, arguments)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for method, keys in METHODS.items():
            found.setdefault(method, []).append(reached(strategies(seed, keys, arguments), arguments.accuracy))
        command = [sys.executable, __file__, *sys.argv[1:], "--grpo", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        found.setdefault("GRPO", []).append(reached(json.loads(done.stdout.splitlines()[-1]), arguments.accuracy))
        for method, runs in found.items():
            print(f"seed {seed}  {method:22s} {json.dumps(runs[-1])}", flush=True)
    print(json.dumps({key: value for key, value in vars(arguments).items() if key != "grpo"} | {"found": found}))


def reached(curve: list[tuple[float, int, float]], accuracy: float) -> dict[str, Any]:
    """Return the first seconds and completions of a curve with an accuracy, and the best that it has."""
    first = next(((seconds, count) for seconds, count, value in curve if value >= accuracy), (None, None))
    best = max(value for _, _, value in curve)
    return {"seconds": first[0], "completions": first[1], "best": best, "seconds_in_all": curve[-1][0]}


def strategies(seed: int, keys: list[str], arguments: argparse.Namespace) -> list[tuple[float, int, float]]:
    """Train with esmpi; return seconds of training, completions and held-out accuracy at each evaluation."""
    from esmpi import open_run

    with tempfile.TemporaryDirectory() as folder:
        command = ["mpiexec", "-n", "2", sys.executable, "-m", "esmpi.run", CONFIG, *keys, f"run.seed={seed}"]
        command += [f"run.output_dir={folder}", "run.export_dtype=none", f"data.batch_size={arguments.prompts}"]
        command += [f"es.generations={arguments.generations}", "eval.every=2"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(done.stdout + done.stderr)
        run = open_run(Path(folder) / "quickstart")
        spent = run.generations["seconds_total"].cumsum()
        found = []
        for row in run.evaluations.to_dict("records"):
            generation = int(row["generation"])
            seconds = float(spent.iloc[generation - 1]) if generation else 0.0
            found.append((round(seconds, 2), generation * 30 * arguments.prompts, float(row["accuracy"])))
        return found


def grpo(seed: int, arguments: argparse.Namespace) -> list[tuple[float, int, float]]:
    """Train with TRL; return the same as `strategies`."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from esmpi.config.reader import load_config
    from esmpi.config.sections import ModelConfig
    from esmpi.data.problems import load_problems
    from esmpi.engines import Request, Sampling
    from esmpi.engines.hf import HfConfig
    from esmpi.engines.hf.engine import HfEngine
    from esmpi.model.base_model import BaseModel
    from esmpi.model.find import fetch_model
    from esmpi.mpi.comm import Place
    from esmpi.tasks import make_task

    torch.set_num_threads(2)
    config = load_config(ROOT / CONFIG, [f"run.seed={seed}"])
    task = make_task(config.task)
    problems = load_problems(config.data, task, seed, {})
    train, held_out = problems.train, problems.held_out
    folder = fetch_model(config.model.path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    place = Place("here", 0, 1, tuple(sorted(os.sched_getaffinity(0))))
    engine: Any = HfEngine(ModelConfig(path=str(folder), dtype="float32"), HfConfig(), BaseModel(folder), place)
    requests = [Request(prompt=engine.render(task.prompt(example))) for example in held_out]
    curve: list[tuple[float, int, float]] = []
    clock = {"began": time.perf_counter(), "excluded": 0.0}

    def evaluate(steps: int) -> None:
        begin = time.perf_counter()
        engine._model.load_state_dict(model.state_dict())
        completions = engine._generate(requests, Sampling(max_tokens=config.sampling.max_tokens))
        scores = [task.score(one.text, example) for one, example in zip(completions, held_out, strict=True)]
        seconds = begin - clock["began"] - clock["excluded"]
        curve.append((round(seconds, 2), 64 * steps, sum(score.correct for score in scores) / len(scores)))
        clock["excluded"] += time.perf_counter() - begin

    class Evaluate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.update(began=time.perf_counter(), excluded=0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % 5 == 0:
                evaluate(state.global_step)

    def reward(completions: list[str], number: list[int], **_: Any) -> list[float]:
        pairs = zip(completions, number, strict=True)
        return [task.score(text, train[i]).reward or 0.0 for text, i in pairs]

    prompts = [{"prompt": task.prompt(example), "number": i} for i, example in enumerate(train)]
    with tempfile.TemporaryDirectory() as output:
        keys = trl.GRPOConfig(
            output_dir=output,
            use_cpu=True,
            seed=seed,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=config.sampling.max_tokens,
            beta=0.0,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant",
            max_steps=arguments.steps,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=keys,
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer,
            callbacks=[Evaluate()],
        )
        trainer.train()
    return curve


if __name__ == "__main__":
    main()
