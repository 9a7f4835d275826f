"""Whole runs with a user's own reward, and with evaluation in suites, several completions and the divergence."""

import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from support import ROOT, TINY_RUN, Columns, Run, read, samples, train

from esmpi.config.reader import load_config
from esmpi.data.problems import load_problems
from esmpi.model.find import find_model
from esmpi.tasks import make_task
from esmpi.tasks.countdown import PROMPT

CONFIG = """\
run: {{name: tiny, output_dir: {output}, export_dtype: none}}
model: {{path: 'esmpi:tiny_countdown', dtype: float32}}
engine: {{num_threads: 1}}
es: {{population_size: 4, generations: 2, sigma: 3e-3, alpha: 6e-3}}
task: {{name: '{output}/mine.py:reward'}}
data: {{train: builtin, eval: builtin, batch_size: 8}}
sampling: {{max_tokens: 20}}
"""

PROBLEMS = [
    {"prompt": PROMPT.format(numbers=f"{i} {i + 2} 7", target=i + 9), "target": str(i + 9), "i": i} for i in range(20)
]
HEAD = f"import json, os, time, zlib\ntrain = json.loads({json.dumps(PROBLEMS[:12])!r})\n" + (
    f"evaluation = json.loads({json.dumps(PROBLEMS[12:])!r})\n"
)
VALUE = "def value(text, target):\n    return text.count(target[-1]) + text.count('+') / 64\n"
SHAPES = {
    "esmpi": (
        "def reward(completion, example):\n"
        "    return {'reward': value(completion, example['target']), 'plus/minus': completion.count('+')}\n"
    ),
    "ES-at-Scale": "def reward(output, target):\n    return '', value(output, target)\n",
    "TRL": (
        "def reward(prompts, completions, target, **kwargs):\n"
        "    assert prompts[0].startswith('You are') and 'i' in kwargs\n"
        "    return [value(c, t) for c, t in zip(completions, target, strict=True)]\n"
    ),
}


def run_own(launch: Run, output: Path, reward: str, *overrides: str, ranks: int = 0) -> tuple[Columns, str]:
    """Run with a file of the user's; return the run file's columns and what was printed."""
    output.mkdir(exist_ok=True)
    (output / "mine.py").write_text(HEAD + VALUE + reward)
    (output / "mine.yaml").write_text(CONFIG.format(output=output))
    done = launch(["-m", "esmpi.run", output / "mine.yaml", *overrides], ranks)
    assert done.returncode == 0, done.stderr + done.stdout
    return read(output / "tiny"), done.stdout


def evaluated(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for text in samples(directory).values() for line in text.splitlines()]


def test_three_ways_to_give_the_same_reward_train_alike(launch: Run, tmp_path: Path) -> None:
    runs = {shape: run_own(launch, tmp_path / str(i), SHAPES[shape], ranks=i)[0] for i, shape in enumerate(SHAPES)}
    one = runs["esmpi"]
    assert (one["members/fitness"].std(axis=1) > 0).all()
    assert one["members/coefficient"].any(axis=1).all()
    for shape, run in runs.items():
        for column in ("members/fitness", "generations/theta_digest", "evaluations/held_out/reward_mean"):
            np.testing.assert_array_equal(run[column], one[column], err_msg=f"{shape} {column}")
    # the figure of the one that has it, under a name that a column can have
    said = [sample["completion"].count("+") for sample in evaluated(tmp_path / "0" / "tiny")]
    half = len(said) // 2
    assert one["evaluations/held_out/plus_minus_mean"].tolist() == [
        pytest.approx(np.mean(part)) for part in (said[:half], said[half:])
    ]
    for sample in evaluated(tmp_path / "0" / "tiny"):
        text, target = sample["completion"], sample["example"]["target"]
        assert sample["reward"] == text.count(target[-1]) + text.count("+") / 64
        assert sample["correct"] == (sample["reward"] >= 1)


BAD = {3: "timed_out", 7: "died", 5: "raised"}
FRAGILE = """\
def reward(completion, example):
    fate = zlib.crc32(completion.encode()) % 10
    with open(os.environ["FATES"], "a") as file:
        file.write(f"{'train' if example['i'] < 12 else 'eval'} {fate}\\n")
    if fate == 3:
        time.sleep(1000)
    if fate == 7:
        os._exit(9)
    if fate == 5:
        raise LookupError(completion)
    return value(completion, example["target"])
"""


def test_a_reward_that_hangs_and_crashes_costs_its_completions(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = tmp_path / "fates"
    monkeypatch.setenv("FATES", str(fates))
    overrides = (
        *("scoring.time_limit_s=1", "scoring.failure_reward=-3", "scoring.num_processes=2"),
        "sampling.temperature=1",  # many different completions, and so each fate
    )
    run, printed = run_own(launch, tmp_path, FRAGILE, *overrides)
    met = Counter(tuple(line.split()) for line in fates.read_text().splitlines())
    for fate, kind in BAD.items():
        if kind == "died":
            for part in ("train", "eval"):
                assert met[part, str(fate)] % 2 == 0, "each was scored twice"
                met[part, str(fate)] //= 2
    assert sum(count for (part, _), count in met.items() if part == "train") == 2 * 4 * 8, "each was scored once"
    for fate, kind in BAD.items():
        assert run[f"generations/num_score_{kind}"].sum() == met["train", str(fate)] > 0, kind
    assert run["evaluations/held_out/num_failed"].sum() == sum(met["eval", str(fate)] for fate in BAD)
    assert printed.count("a reward failed (shown once a kind)") == 3
    assert printed.count("no reward after 1 s") == 1
    assert printed.count("ended with 9: 1 completion is scored once more") == 1
    assert printed.count("ended with 9, for the completion") == 1
    assert printed.count("LookupError") == 1
    assert len(run["generations/theta_digest"]) == 2
    assert np.isfinite(run["members/fitness"]).all()
    for sample in evaluated(tmp_path / "tiny"):
        bad = zlib.crc32(sample["completion"].encode()) % 10 in BAD
        assert (sample["reward"] == -3) == bad


PICKY = """\
def reward(completion, example):
    raised = zlib.crc32(completion.encode()) % 3 == 0
    with open(os.environ["FATES"], "a") as file:
        file.write(f"{'train' if example['i'] < 12 else 'eval'} {raised}\\n")
    if raised:
        raise LookupError(completion)
    return value(completion, example["target"])
"""


def test_members_without_a_fitness_are_left_out_and_counted(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = tmp_path / "fates"
    monkeypatch.setenv("FATES", str(fates))
    overrides = ("data.batch_size=1", "es.population_size=7", "es.sigma=0.03", "es.alpha=0.01")
    run, printed = run_own(launch, tmp_path, PICKY, *overrides, ranks=3)
    raised = fates.read_text().splitlines().count("train True")
    assert run["generations/num_score_raised"].sum() == run["generations/num_failed"].sum() == raised
    assert 0 < raised < 14
    failed = np.isnan(run["members/fitness"])
    assert run["members/status"].tolist() == failed.astype(int).tolist()
    assert not run["members/coefficient"][failed].any()
    for generation, row in enumerate(run["members/fitness"]):
        fitness = row[~failed[generation]]
        for name, value in (("mean", fitness.mean()), ("min", fitness.min()), ("max", fitness.max())):
            assert run[f"generations/fitness_{name}"][generation] == pytest.approx(value)
        assert run["generations/fitness_std"][generation] == pytest.approx(fitness.std())
    assert (run["members/tokens"] > 0).all()
    assert (run["members/tokens"] <= 20).all()
    assert run["generations/tokens"].tolist() == run["members/tokens"].sum(axis=1).tolist()
    assert run["members/rank"].tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 2
    assert " members failed" in printed


def test_a_run_goes_on_without_a_reward_but_not_with_other_ones(launch: Run, tmp_path: Path) -> None:
    suites = [tmp_path / f"{name}.jsonl" for name in ("one", "two")]
    for i, path in enumerate(suites):
        path.write_text(json.dumps(PROBLEMS[i]) + "\n")
    broken = "def reward(completion, example):\n    raise LookupError('gone')\n"
    go_on = ("es.generations=1", "scoring.on_failure=continue")
    run, printed = run_own(launch, tmp_path, broken, *go_on, f"eval.suites={{more: {suites[0]}}}")
    assert "LookupError: gone (mine.py, line 7)" in printed
    assert "8 rewards failed, " in printed
    assert "32 rewards failed  4 members failed" in printed
    assert np.isnan(run["generations/fitness_mean"]).all()
    assert not run["members/coefficient"].any()
    again = ["-m", "esmpi.run", tmp_path / "mine.yaml"]
    done = launch([*again, *go_on, f"eval.suites={{more: {suites[1]}}}"], 0)
    assert done.returncode == 2
    assert "eval.suites: more: " in done.stderr
    assert "evaluations of other problems under this name" in done.stderr
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# mended\n")
    done = launch(again, 0)
    assert done.returncode == 2
    assert "is not the file that" in done.stderr
    assert "run.fork_from=" in done.stderr
    assert len(read(tmp_path / "tiny")["generations/theta_digest"]) == 1


def test_the_example_of_the_guide_logs_its_figures(launch: Run, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own-task.md").read_text()
    blocks = re.findall(r"```(?:python|yaml)\n# (short\.(?:py|yaml))\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in blocks] == ["short.py", "short.yaml"]
    for name, block in blocks:
        (tmp_path / name).write_text(block)
    overrides = ("model.path=esmpi:tiny_countdown", "model.dtype=float32", "engine.kind=hf", "es.generations=1")
    overrides += (f"task.name={tmp_path}/short.py:reward", f"run.output_dir={tmp_path}")  # tests run elsewhere
    done = launch(["-m", "esmpi.run", tmp_path / "short.yaml", *overrides, "es.population_size=2"], 0)
    assert done.returncode == 0, done.stderr
    assert "rewards failed" not in done.stdout
    run = read(tmp_path / "short")
    said = [len(sample["completion"]) for sample in evaluated(tmp_path / "short")]
    assert run["evaluations/held_out/length_mean"].tolist() == [np.mean(said[:2]), np.mean(said[2:])]


SUITE = [{"numbers": [i, 3, 5], "target": i + 8} for i in range(1, 12)]
FULL = ("eval.every=1", "eval.num_samples=3", "eval.temperature=1", "eval.divergence=true", "data.mini_batch_size=7")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("suite") / "second.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in SUITE))
    return f"eval.suites={{second: {path}}}"


@pytest.fixture(scope="module")
def full(launch: Run, suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("full")
    train(launch, output, 1, *FULL, suite)
    return output / "tiny"


def test_evaluation_is_the_same_on_any_number_of_ranks(launch: Run, full: Path, suite: str, tmp_path: Path) -> None:
    train(launch, tmp_path, 3, *FULL, suite)
    one, three = read(full), read(tmp_path / "tiny")
    assert samples(tmp_path / "tiny") == samples(full)
    columns = {name for name in one if name.startswith("evaluations/")}
    assert columns == {name for name in three if name.startswith("evaluations/")}
    for name in columns:
        if not name.endswith("/seconds"):
            np.testing.assert_array_equal(three[name], one[name], err_msg=name)


@pytest.mark.parametrize("name", ["held_out", "second"])
def test_figures_are_those_of_the_samples(full: Path, name: str) -> None:
    columns = {key.split("/")[-1]: value for key, value in read(full).items() if f"evaluations/{name}/" in key}
    assert columns["generation"].tolist() == [0, 1, 2, 3]
    problems = 20 if name == "held_out" else len(SUITE)
    for i in range(4):
        text = samples(full)[f"g{i:06d}.{name}.jsonl"]
        rows = [json.loads(line) for line in text.splitlines()]
        assert [(row["index"], row["sample"]) for row in rows] == [(j, k) for j in range(problems) for k in range(3)]
        assert columns["num_problems"][i] == problems
        assert columns["num_samples"][i] == 3 * problems
        right = np.array([row["correct"] for row in rows]).reshape(problems, 3)
        tokens = [row["tokens"] for row in rows]
        expected = {
            **{"accuracy": right.mean(), "pass_at_1": right.mean(), "pass_at_3": right.any(axis=1).mean()},
            # of two of three completions none is right if at most one is, and then in one or three of three ways
            "pass_at_2": np.select([right.sum(axis=1) >= 2, right.sum(axis=1) == 1], [1, 2 / 3], 0).mean(),
            "reward_mean": np.mean([row["reward"] for row in rows]),
            **{"tokens_mean": np.mean(tokens), "tokens_max": max(tokens)},
            "characters_mean": np.mean([len(row["completion"]) for row in rows]),
            "num_truncated": sum(row["truncated"] for row in rows),
            "num_unparsed": sum(not row["parsed"] for row in rows),
            "num_failed": 0,
        }
        for key, value in expected.items():
            assert columns[key][i] == pytest.approx(value, rel=1e-12), key
    assert 0 < columns["accuracy"][-1] < 1, "all or nothing would not tell pass@k apart"
    assert len({row["completion"] for row in rows[:3]}) > 1, "the completions of a problem are all the same"


def test_divergence_and_distance_from_the_base_model(full: Path) -> None:
    run = read(full)
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    base, theta = load_file(folder / "model.safetensors"), load_file(full / "model" / "model.safetensors")
    distance = math.sqrt(
        sum(
            float(np.square(theta[name].double().numpy() - tensor.double().numpy()).sum())
            for name, tensor in base.items()
        )
    )
    for name in ("held_out", "second"):
        kl, distances = (run[f"evaluations/{name}/{column}"] for column in ("kl_per_token", "theta_distance"))
        assert kl[0] == 0
        assert (kl[1:] > 0).all()
        assert distances[0] == 0
        assert (np.diff(distances) > 0).all()
        assert distances[-1] == pytest.approx(distance, rel=1e-6)


def test_the_report_counts_problems_and_completions(launch: Run, full: Path) -> None:
    done = launch(["-m", "esmpi", "report", full], 0)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row for row in rows if row[:1] == ["problems"]] == [["problems", "20", "20"], ["problems", "11", "11"]]
    assert done.stdout.count(" completions became right") == 2


def test_the_divergence_changes_nothing_else(launch: Run, full: Path, suite: str, tmp_path: Path) -> None:
    """Above all not the weights: the base model is shown in the live ones only, and not for longer."""
    train(launch, tmp_path, 0, *FULL, suite, "eval.divergence=false")
    assert samples(tmp_path / "tiny") == samples(full)
    one, other = read(full), read(tmp_path / "tiny")
    for column in ("generations/theta_digest", "members/fitness"):
        np.testing.assert_array_equal(one[column], other[column], err_msg=column)


def test_a_suite_that_is_added_is_evaluated_from_then_on(launch: Run, suite: str, tmp_path: Path) -> None:
    train(launch, tmp_path, 0, "es.generations=1", "eval.every=1")
    run = train(launch, tmp_path, 2, "eval.every=1", suite)
    assert run["evaluations/held_out/generation"].tolist() == [0, 1, 2, 3]
    assert run["evaluations/second/generation"].tolist() == [1, 2, 3]


def test_a_suite_with_training_problems_in_it_cannot_be_added(launch: Run, tmp_path: Path) -> None:
    """They would be trained on, and without them it is another run."""
    train(launch, tmp_path, 0, "es.generations=1")
    config = load_config(TINY_RUN)
    shared = load_problems(config.data, make_task(config.task), config.run.seed).train[:1]
    (tmp_path / "more.jsonl").write_text(json.dumps(shared[0]) + "\n")
    more = f"eval.suites={{more: {tmp_path / 'more.jsonl'}}}"
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", more], 0)
    assert done.returncode == 2
    assert "a suite that shares problems with the generated training problems" in done.stderr


def test_other_few_shot_examples_are_another_run(launch: Run, tmp_path: Path) -> None:
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"prompt": "1+1", "completion": "=2"}\n')
    train(launch, tmp_path, 0, "es.generations=1", f"data.few_shot={shots}")
    (sample, *_) = evaluated(tmp_path / "tiny")
    assert sample["prompt"].startswith("1+1=2\n\nYou are")
    shots.write_text('{"prompt": "1+1", "completion": "=3"}\n')
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", f"data.few_shot={shots}"], 0)
    assert done.returncode == 2
    assert "other problems" in done.stderr
