"""tools/bench_forgetting.py: its two skills, and the task of lm-evaluation-harness that it writes."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import ROOT, require

sys.path.append(str(ROOT / "tools"))

import bench_forgetting
import forgetting_task

from esmpi.config.problems import HarnessSuite
from esmpi.tasks.countdown import PROMPT


def test_the_largest_number_counts_and_another_of_the_three_a_little() -> None:
    problem = {"prompt": "", "largest": 12, "numbers": [3, 12, 7]}
    for said, reward, correct in (("12", 1.0, True), (" 12+3", 1.0, True), ("7", 0.2, False), ("120", 0.0, False)):
        assert forgetting_task.reward(said, problem) == {"reward": reward, "correct": correct, "parsed": True}
    assert not forgetting_task.reward("twelve", problem)["parsed"]


def test_no_held_out_problem_is_a_training_problem() -> None:
    train, held_out = forgetting_task.train(), forgetting_task.evaluation()
    assert (len(train), len(held_out)) == (2000, 400)
    assert not {str(one["prompt"]) for one in train} & {str(one["prompt"]) for one in held_out}
    assert all(one["largest"] == max(one["numbers"]) for one in held_out)  # type: ignore[call-overload]


def test_the_old_skill_is_a_task_of_the_harness(tmp_path: Path) -> None:
    require("lm-eval", find_spec("lm_eval") is not None, "pip install 'esmpi[lm-eval]'")
    from esmpi.harness.model import Answer
    from esmpi.harness.suite import Suite

    folder = bench_forgetting.old_problems(tmp_path)
    suite = Suite("old", HarnessSuite(lm_eval="countdown", include_path=str(folder), limit=2))
    first = suite.examples[0]
    numbers = " ".join(map(str, first["doc"]["numbers"]))
    assert first["requests"][0][1][0] == PROMPT.format(numbers=numbers, target=first["doc"]["target"])
    right = f"</think>\n<answer>{first['doc']['solution']}</answer>"
    outcome = suite.score([Answer(text=right, num_tokens=1), Answer(text="</think> no", num_tokens=1)])
    assert outcome.accuracy == 0.5
    assert [sample["correct"] for sample in outcome.samples] == [True, False]


def test_the_table_has_percents_and_a_distance() -> None:
    runs = [
        {"held_out": {0: [0.0, 0.0], 10: [share, 4.0]}, "countdown": {0: [0.8, 0.0], 10: [0.5, 4.0]}}
        for share in (0.4, 0.6)
    ]
    last = bench_forgetting.table({"none": runs}, [10]).splitlines()[-1]
    assert last == "| none | 0.0 ± 0.0 | 50.0 ± 14.1 | 80.0 ± 0.0 | 50.0 ± 0.0 | 4.0 ± 0.0 |"


@pytest.mark.parametrize("name", bench_forgetting.SETTINGS)
def test_settings_are_configs(name: str, tmp_path: Path) -> None:
    arguments = bench_forgetting.parser().parse_args(["--folder", str(tmp_path), "--settings", name])
    job = bench_forgetting.job_of(name, 0, tmp_path / "model", tmp_path / "tasks", arguments)
    assert job.config.eval.retention == ("countdown",)
    assert "/" not in job.config.run.name
