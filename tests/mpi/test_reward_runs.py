"""Whole runs with rewards that compare completions, and with rewards that nobody gets."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TINY_RUN, Columns, Run, assert_same_run, read, samples
from test_own_task import CONFIG, HEAD, VALUE

RELATIVE = """\
import contextlib, hashlib, os, pathlib, signal

def longest(completions, prompts, completion_ids, i, trainer_state, log_metric, log_extra, **kwargs):
    with contextlib.suppress(FileNotFoundError):  # where there is this file, the process is killed once in a generation
        os.unlink(pathlib.Path(__file__).with_name(f"kill in generation {trainer_state.global_step}"))
        os.kill(os.getpid(), signal.SIGKILL)
    seen = [len(completions), i[0], trainer_state.global_step, trainer_state.max_steps]
    assert all(len(column) == len(prompts) for column in (completions, completion_ids, i))
    most = max(map(len, completions))
    log_metric("most", most)
    # what exactly it saw, in what order
    what = repr([prompts, completions, completion_ids, i, seen])
    log_extra("seen", [hashlib.sha256(what.encode()).hexdigest()] * len(i))
    log_extra("batch", [seen] * len(i))
    return [float(len(text) == most) + len(ids) / 64 for text, ids in zip(completions, completion_ids)]

def only_some(completion, example):
    if example["i"] % 3:
        return {"reward": value(completion, example["target"]), "plus": completion.count("+")}
"""
KEYS = (
    *("task.rewards={longest: 1, only_some: 0.5}", "sampling.num_samples=2", "sampling.temperature=1"),
    *("eval.num_samples=3", "eval.temperature=1", "data.batch_size=5", "es.shaping=per_prompt", "eval.every=1"),
    "log.samples=2",
)


def launch_own(launch: Run, output: Path, reward: str, *overrides: str, ranks: int = 0) -> Any:
    output.mkdir(exist_ok=True)
    (output / "mine.py").write_text(HEAD + VALUE + reward)
    (output / "mine.yaml").write_text(CONFIG.format(output=output))
    return launch(["-m", "esmpi.run", output / "mine.yaml", *overrides], ranks)


def run_relative(launch: Run, output: Path, *overrides: str, ranks: int = 0) -> Columns:
    done = launch_own(launch, output, RELATIVE, f"task.name={output}/mine.py:longest", *KEYS, *overrides, ranks=ranks)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "failed" not in done.stdout
    return read(output / "tiny")


@pytest.fixture(scope="module")
def relative(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("relative")
    run_relative(launch, output)
    return output / "tiny"


def rows(directory: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in samples(directory)[file].splitlines()]


def test_a_reward_sees_all_completions_of_a_member_and_in_evaluations_of_as_many_problems(relative: Path) -> None:
    run = read(relative)
    assert np.isfinite(run["members/fitness"]).all()
    assert run["members/coefficient"].any(axis=1).all()
    evaluated = rows(relative, "g000001.held_out.jsonl")
    assert len(evaluated) == 8 * 3
    # 5 problems and then the other 3, with three completions each, side by side
    assert [row["notes"]["batch"] for row in evaluated] == [[15, 12, 1, 2]] * 15 + [[9, 17, 1, 2]] * 9
    for batch in (evaluated[:15], evaluated[15:]):
        most = max(len(row["completion"]) for row in batch)
        for row in batch:
            longest = float(len(row["completion"]) == most) + row["tokens"] / 64
            assert row["figures"]["longest"] == longest
            assert row["figures"]["most"] == most
            assert ("only_some" in row["figures"]) == (row["example"]["i"] % 3 != 0)
            assert row["reward"] == longest + 0.5 * row["figures"].get("only_some", 0)
    assert run["evaluations/held_out/most_mean"][1] == np.mean([row["figures"]["most"] for row in evaluated])


def test_what_a_reward_sees_depends_on_no_layout(launch: Run, relative: Path, tmp_path: Path) -> None:
    keys = ("es.dispatch=dynamic", "data.mini_batch_size=3", "scoring.num_processes=2")
    kills = [tmp_path / f"kill in generation {generation}" for generation in range(2)]
    for kill in kills:  # from outside, for all that the run knows
        kill.touch()
    run_relative(launch, tmp_path, *keys, ranks=3)
    assert not any(kill.exists() for kill in kills)
    assert_same_run(tmp_path / "tiny", relative)
    one, other = read(relative), read(tmp_path / "tiny")
    figures = [name for name in one if name.startswith("figures/")]
    assert {"figures/most_mean", "figures/most_std", "figures/plus_mean"} <= set(figures)
    for name in figures:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    files = [path.name for path in sorted((relative / "samples").iterdir())]
    assert files == ["g000000.jsonl", "g000001.jsonl"]
    for name in files:
        assert (tmp_path / "tiny" / "samples" / name).read_text() == (relative / "samples" / name).read_text()


def test_members_are_logged_with_the_parts_of_their_rewards(launch: Run, tmp_path: Path) -> None:
    run = run_relative(launch, tmp_path, "es.population_size=2", "es.generations=1", "log.samples=99", "es.sigma=0.02")
    kept = [json.loads(line) for line in (tmp_path / "tiny/samples/g000000.jsonl").read_text().splitlines()]
    assert [row["which"] for row in kept] == ["best"] * 10 + ["worst"] * 10 + ["random"] * 10
    fitness, members = run["members/fitness"][0], {}
    for row in kept:
        assert row["fitness"] == fitness[row["member"]]
        assert row["reward"] == row["figures"]["longest"] + 0.5 * row["figures"].get("only_some", 0)
        members[row["which"]] = row["member"]
    assert (members["best"], members["worst"]) == (fitness.argmax(), fitness.argmin())
    assert [(row["index"], row["sample"]) for row in kept[:10]] == [(i, k) for i in range(5) for k in range(2)]
    means: dict[str, list[float]] = {"longest": [], "only_some": [], "plus": []}
    for its in (kept[:10], kept[10:20]):
        assert its[0]["fitness"] == pytest.approx(np.mean([row["reward"] for row in its]), rel=1e-12)
        for name, column in means.items():
            column.append(np.mean([row["figures"][name] for row in its if name in row["figures"]]))
    for name, column in means.items():
        assert run[f"figures/{name}_mean"].tolist() == [pytest.approx(np.mean(column), rel=1e-12)]
        assert run[f"figures/{name}_std"].tolist() == [pytest.approx(np.std(column), rel=1e-9, abs=1e-15)]


def test_a_run_that_is_resumed_is_the_same(launch: Run, relative: Path, tmp_path: Path) -> None:
    run_relative(launch, tmp_path, "es.generations=1")
    run_relative(launch, tmp_path)
    one, two = read(relative), read(tmp_path / "tiny")
    np.testing.assert_array_equal(one["generations/theta_digest"], two["generations/theta_digest"])


MORTAL = """\
import pathlib, signal

def relative(completions, examples):
    # what it sees decides when it dies, as the completions do not depend on the layout
    if sum(map(len, completions)) % 5 == 0 and len(completions) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    least = min(map(len, completions))
    return [(len(text) - least) / 40 for text in completions]

def prepare():  # called in each process that computes rewards
    with open(pathlib.Path(__file__).with_name("processes"), "a") as file:
        file.write(f"{os.getpid()} {len(os.sched_getaffinity(0))}\\n")

relative.prepare = prepare
"""
MORTAL_KEYS = (
    *("task.reward_scope=batch", "sampling.num_samples=2", "sampling.temperature=1", "data.batch_size=5"),
    *("scoring.failure_reward=-1", "eval.every=1"),
)


def test_the_ranks_of_a_node_share_processes_that_die_and_change_nothing(launch: Run, tmp_path: Path) -> None:
    def run(output: Path, *overrides: str, ranks: int = 0) -> list[str]:
        done = launch_own(
            launch, output, MORTAL, f"task.name={output}/mine.py:relative", *MORTAL_KEYS, *overrides, ranks=ranks
        )
        assert done.returncode == 0, done.stderr + done.stdout
        known = (output / "processes").read_text().splitlines()
        (output / "processes").unlink()
        return known

    run(tmp_path / "one")
    columns = read(tmp_path / "one" / "tiny")
    num_died = columns["generations/num_score_died"]
    assert (num_died > 0).all()
    assert (num_died < 40).all()
    shared = tmp_path / "shared"
    run(shared, "scoring.per_node=true", "es.generations=1")
    processes = run(shared, "scoring.per_node=true", "es.dispatch=dynamic", ranks=3)
    # one for three ranks, and another one after each that was lost
    assert 1 + num_died[1] // 10 <= len(processes) <= 1 + 2 * num_died[1] // 10
    # which may use the cores of all ranks
    assert {int(line.split()[1]) for line in processes} == {len(os.sched_getaffinity(0))}
    assert_same_run(tmp_path / "one" / "tiny", shared / "tiny")


HEAVY = """\
from esmpi.rewards import RewardModel

class Counted(RewardModel):
    def prepare(self):
        super().prepare()
        with open(__file__ + ".loaded", "a") as file:
            file.write(f"{os.getpid()}\\n")

liked = Counted(FOLDER, batch_size=4)
"""


def test_a_reward_model_is_loaded_once_a_node(launch: Run, reward_model: Path, tmp_path: Path) -> None:
    def run(output: Path, *overrides: str, ranks: int = 0) -> int:
        reward = HEAVY.replace("FOLDER", repr(str(reward_model)))
        keys = (f"task.name={output}/mine.py:liked", "es.generations=1", *overrides)
        done = launch_own(launch, output, reward, *keys, ranks=ranks)
        assert done.returncode == 0, done.stderr + done.stdout
        return len((output / "mine.py.loaded").read_text().splitlines())

    assert run(tmp_path / "one") == 1
    assert run(tmp_path / "shared", "scoring.per_node=true", ranks=2) == 1
    assert_same_run(tmp_path / "one" / "tiny", tmp_path / "shared" / "tiny")
    assert len(set(read(tmp_path / "shared" / "tiny")["members/fitness"][0])) > 1


GROUPS = """\
def reward(completions, examples):
    assert len(completions) == 3 and len({example["i"] for example in examples}) == 1
    return [{"reward": text == max(completions), "correct": text == max(completions)} for text in completions]
"""


def test_a_reward_over_the_samples_of_a_prompt(launch: Run, tmp_path: Path) -> None:
    keys = ("task.reward_scope=group", "sampling.num_samples=3", "eval.num_samples=3", "sampling.temperature=1")
    keys = (*keys, "eval.temperature=1", "data.batch_size=6", "data.mini_batch_size=4", "eval.every=1")
    resumed = (("es.generations=1",), 0), (("es.dispatch=dynamic", "data.mini_batch_size=null"), 3)
    for name, starts in (("one", [((), 0)]), ("resumed", resumed)):
        for overrides, ranks in starts:
            own = (f"task.name={tmp_path / name}/mine.py:reward", *keys, *overrides)
            done = launch_own(launch, tmp_path / name, GROUPS, *own, ranks=ranks)
            assert done.returncode == 0, done.stderr + done.stdout
    run = read(tmp_path / "one" / "tiny")
    assert run["evaluations/held_out/pass_at_3"].tolist() == [1, 1, 1], "one of each three is the last in the alphabet"
    assert (run["members/fitness"] >= 1 / 3).all()
    assert_same_run(tmp_path / "one" / "tiny", tmp_path / "resumed" / "tiny")


NOBODY = """\
def reward(completions, i, **kwargs):
    if WHERE == "everywhere" or i[0] < 12:
        FATE
    return [1.0] * len(completions)
"""
EVERYWHERE, TRAINING = "everywhere", "in training"
FATES = {
    "raises": (EVERYWHERE, "raise KeyError('score')", "KeyError: 'score' (mine.py, line 8)"),
    "raises later": (TRAINING, "raise KeyError('score')", "KeyError: 'score' (mine.py, line 8)"),
    "one for all": (
        TRAINING,
        "return [1.0]",
        "ValueError: reward returned 1 reward for 8 completions: it must return one for each. Correct the reward, or ",
    ),
    "none": (EVERYWHERE, "return [None] * len(completions)", "every reward is None. Correct the reward, or set "),
    "hangs": (EVERYWHERE, "time.sleep(1000)", "no reward after 1 s (8 completions). Correct the reward, or set "),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_run_without_any_reward_stops_with_the_error(launch: Run, tmp_path: Path, fate: str) -> None:
    """In the first evaluation or, if that went well, in the first generation."""
    where, what, said = FATES[fate]
    text = NOBODY.replace("WHERE", repr(where)).replace("FATE", what)
    done = launch_own(launch, tmp_path, text, "scoring.time_limit_s=1", ranks=2)
    assert done.returncode == 2, done.stderr + done.stdout
    place = "the evaluation of held_out at generation 0" if where == EVERYWHERE else "generation 0"
    # all eight problems, or all eight prompts of a member
    assert f"esmpi: no completion in {place} got a reward: {said}" in done.stderr
    assert done.stderr.count("no completion in") == 1
    run = read(tmp_path / "tiny")
    assert ("evaluations/held_out/accuracy" in run) == (where == TRAINING)
    assert len(run["generations/generation"]) == 0


def test_a_run_continues_without_rewards_if_it_is_to(launch: Run, tmp_path: Path) -> None:
    text = NOBODY.replace("WHERE", "'everywhere'").replace("FATE", "return [None] * len(completions)")
    done = launch_own(launch, tmp_path, text, "scoring.on_failure=continue", "es.generations=1")
    assert done.returncode == 0, done.stderr + done.stdout
    run = read(tmp_path / "tiny")
    assert np.isnan(run["evaluations/held_out/accuracy"]).all()
    assert run["evaluations/held_out/num_failed"].tolist() == [0, 0], "what does not apply has not failed"
    assert run["evaluations/held_out/num_without_reward"].tolist() == [8, 8]
    assert not run["members/coefficient"].any()


@pytest.mark.parametrize(
    ("key", "limit"), [("time_limit_s=10", "time_limit_s, 10"), ("memory_gib=999", "memory_gib, ")]
)
def test_a_program_is_limited_within_the_process_that_scores(launch: Run, tmp_path: Path, key: str, limit: str) -> None:
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", "task.name=code", f"task.{key}"], 0)
    assert done.returncode == 2
    name = key.partition("=")[0]
    assert f"esmpi: task.{name}: must be below scoring.{limit}" in done.stderr
