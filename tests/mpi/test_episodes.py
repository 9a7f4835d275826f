"""Runs whose completions take several turns: any layout, killed and resumed, replayed; and processes that are lost."""

from pathlib import Path

import numpy as np
import pytest
from support import ROOT, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.report.view import open_run

CALCULATOR = (
    "task.name=env:countdown_calculator",
    "task.params={num_numbers: [3], number_range: [1, 20], target_range: [1, 99], operators: '+-'}",
    "sampling.stop=['=']",
    "sampling.include_stop=true",
)


@pytest.mark.parametrize("noise", ["full", "low_rank"])
def test_the_layout_changes_nothing_and_a_replay_is_exact(launch: Run, tmp_path: Path, noise: str) -> None:
    keys = (*CALCULATOR, f"es.noise={noise}", "eval.every=1", "eval.divergence=true", "eval.control_every=1")
    train(launch, tmp_path / "unbroken", 0, *keys)
    train(launch, tmp_path / "resumed", 0, *keys, "es.generations=1")
    # with two processes an episode may go on in another one, which plays it again
    layout = ("es.dispatch=dynamic", "data.mini_batch_size=3", "scoring.num_processes=2")
    train(launch, tmp_path / "resumed", 3, *keys, *layout)
    assert_same_run(tmp_path / "resumed" / "tiny", tmp_path / "unbroken" / "tiny")
    columns = read(tmp_path / "resumed" / "tiny")
    assert len(set(columns["generations/theta_digest"].tolist())) == 3
    assert (columns["evaluations/held_out/turns_mean"] > 1).all()
    assert (columns["evaluations/held_out/calculated_mean"] > 0).all()
    kl = columns["evaluations/held_out/kl_per_token"]
    assert kl[0] == 0
    assert (kl[1:] > 0).all()
    assert main(["replay", str(tmp_path / "resumed" / "tiny"), "--verify"]) == 0
    for sample in open_run(tmp_path / "resumed" / "tiny").samples(generation=3).to_dict("records"):
        said = sample["completion"]
        assert said.count("=") >= sample["figures"]["calculated"] > 0
        assert sample["tokens"] > sample["figures"]["turns"]


FAULTS = '''
import os
import time
import esmpi

class Faulty(esmpi.Environment):
    """The second turn of some problems goes wrong."""

    def reset(self, example, seed):
        self.number, self.turns = example["number"], 0
        return "Say something:"

    def step(self, completion):
        self.turns += 1
        if self.turns == 2:
            if self.number == 1:
                raise ValueError("no luck")
            if self.number == 2:
                os._exit(3)
            if self.number == 3:
                time.sleep(600)
        if self.turns < 3:
            return "More:"
        return {"reward": len(completion), "correct": True}

    def problems(self, part):
        return [{"number": i, "part": part} for i in range(8)]
'''


def test_an_episode_that_goes_wrong_costs_no_other_one(launch: Run, tmp_path: Path) -> None:
    path = tmp_path / "faulty.py"
    path.write_text(FAULTS, encoding="utf-8")
    keys = (f"task.name=env:{path}:Faulty", "data.train=builtin", "data.eval=builtin", "scoring.time_limit_s=2")
    keys = (*keys, "scoring.failure_reward=-7", "sampling.max_tokens=4", "es.population_size=2", "es.generations=1")
    columns = train(launch, tmp_path, 0, *keys, "data.num_train=null", "data.num_eval=null")
    samples = open_run(tmp_path / "tiny").samples(generation=0).sort_values("index")
    rewards = samples["reward"].to_numpy()
    assert (rewards[1:4] == -7).all()
    assert (np.delete(rewards, [1, 2, 3]) >= 0).all()
    assert columns["evaluations/held_out/num_failed"].tolist() == [3, 3]
    failed = [columns[f"generations/num_score_{kind}"].tolist() for kind in ("raised", "died", "timed_out")]
    assert failed == [[2], [2], [2]], "one of each kind for each member"


@pytest.mark.parametrize(
    ("limit", "turns"), [("task.max_turns=2", 2), ("task.max_tokens=12", 3), ("engine.max_model_len=null", None)]
)
def test_limits_end_episodes(launch: Run, tmp_path: Path, limit: str, turns: int | None) -> None:
    path = tmp_path / "endless.py"
    path.write_text(
        "import esmpi\n\nclass Endless(esmpi.Environment):\n"
        "    def reset(self, example, seed): return 'Say something:'\n"
        "    def step(self, completion): return {'append': ' and', 'reward': 1}\n"
        "    def problems(self, part): return [{'part': part, 'i': i} for i in range(8)]\n",
        encoding="utf-8",
    )
    keys = (f"task.name=env:{path}:Endless", "data.train=builtin", "data.eval=builtin", "sampling.max_tokens=5")
    keys = (*keys, "sampling.min_tokens=5", "es.generations=0", "task.max_turns=1000")
    if turns is not None:
        keys = (*keys, limit)
    train(launch, tmp_path, 0, *keys, "data.num_train=null", "data.num_eval=null")
    for sample in open_run(tmp_path / "tiny").samples(generation=0).to_dict("records"):
        made = int(sample["figures"]["turns"])
        assert sample["reward"] == made
        if turns is None:
            # the model has room for no more
            assert 10 < made < 1000
            assert sample["truncated"]
        else:
            assert made == turns


def test_the_shipped_config_runs(launch: Run, tmp_path: Path) -> None:
    small = ("es.generations=1", "es.population_size=4", "data.num_eval=20", "data.batch_size=8")
    config = ROOT / "configs" / "countdown_calculator.yaml"
    done = launch(["-m", "esmpi.run", config, f"run.output_dir={tmp_path}", *small], 2)
    assert done.returncode == 0, done.stderr + done.stdout


AGENT = """
import asyncio, httpx

train = [{"numbers": numbers} for numbers in ("3 5 7", "2 4 6", "9 1 8", "6 6 1")]
evaluation = train


async def solve(client, example):
    async with httpx.AsyncClient(headers={"Authorization": "Bearer " + client.api_key}, timeout=None) as own:
        said = example["numbers"] + " =", ""
        for _ in range(3):
            reply = await own.post(client.base_url + "/completions", json={"prompt": "".join(said)})
            said = *said, reply.raise_for_status().json()["choices"][0]["text"]
    return {"reward": len(set(said[-1])) / 10, "different": len(set(said))}
"""


AGENT_CONFIG = """
run: {name: tiny, export_dtype: none}
model: {path: "esmpi:tiny_countdown", dtype: float32}
engine: {num_threads: 1}
es: {population_size: 3, antithetic: false, generations: 1}
task: {name: "env:agent.py:solve"}
data: {train: builtin, eval: builtin, batch_size: 3}
sampling: {max_tokens: 8, temperature: 1.0}
eval: {every: 1, temperature: 1.0}
"""


def test_a_program_that_asks_by_http_is_the_same_on_any_layout(launch: Run, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT, encoding="utf-8")
    (tmp_path / "agent.yaml").write_text(AGENT_CONFIG, encoding="utf-8")
    layouts = (("one", 0), ("three", 3, "es.dispatch=dynamic", "scoring.num_processes=2", "scoring.per_node=true"))
    for name, ranks, *overrides in layouts:
        names = (f"run.output_dir={tmp_path / name}", f"task.name=env:{tmp_path}/agent.py:solve")
        done = launch(["-m", "esmpi.run", tmp_path / "agent.yaml", *names, *overrides], ranks)
        assert done.returncode == 0, done.stderr + done.stdout
    assert_same_run(tmp_path / "one" / "tiny", tmp_path / "three" / "tiny")
    columns = read(tmp_path / "one" / "tiny")
    assert (columns["evaluations/held_out/turns_mean"] == 3).all()
    assert (columns["evaluations/held_out/num_failed"] == 0).all()
    assert (columns["generations/fitness_std"] > 0).all()
