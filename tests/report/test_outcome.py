"""What a run says at its end, compared with the samples of its evaluations."""

import json
import re
from pathlib import Path

import numpy as np
from made_runs import make_run
from scipy import stats

from esmpi.report.outcome import exit_summary, outcome_of
from esmpi.report.samples import read_samples
from esmpi.store.run_file import RunFile, samples_path


def numbers(text: str) -> list[float]:
    """Return the numbers of a text."""
    return [float(found) for found in re.findall(r"[-+]?\d+(?:\.\d+)?", text)]


def test_the_end_of_a_run_says_what_it_learned_and_how_sure_that_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_problems=200)
    right = [np.array([one["correct"] for one in read_samples(run, "held_out", g)], float) for g in (0, 12)]
    learned, paired, other, files, following = exit_summary(run, 12, False, tmp_path / "run" / "model")
    wilson = [stats.binomtest(int(one.sum()), 200).proportion_ci(0.95, method="wilson") for one in right]
    ends = [100 * end for one in wilson for end in (one.low, one.high)]
    accuracies = [100 * one.mean() for one in right]
    expected = [*accuracies, 95, *ends, accuracies[0] / 200, accuracies[1] / 200, 200]
    np.testing.assert_allclose(numbers(learned.replace("->", "")), expected, atol=0.051)
    gain = right[1] - right[0]
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    half = 1.96 * gain.std(ddof=1) / np.sqrt(200)
    said = [better, worse, 100 * gain.mean(), 95, 100 * (gain.mean() - half), 100 * (gain.mean() + half), 0.0001]
    np.testing.assert_allclose(numbers(paired), said, atol=0.051)
    assert stats.binomtest(better, better + worse).pvalue < 0.0001
    assert other == "kept: accuracy 90.0 % -> 80.0 %"
    assert files == f"files: run file {run.path}, model {tmp_path}/run/model, completions {tmp_path}/run/eval"
    assert following == f"next: esmpi report {tmp_path}/run"


def test_a_generation_that_was_chosen_and_a_difference_that_may_be_chance_have_a_caution(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert any("chosen as the best of 4 evaluations" in line for line in exit_summary(run, 12, True, None))
    assert not any("chosen" in line or "chance" in line for line in exit_summary(run, 12, False, None))
    # after four generations four problems of twenty are right that were wrong, and one is wrong that was right
    lines = exit_summary(run, 4, False, None)
    assert any("p = 0.38" in line for line in lines)
    assert any("The difference may be chance" in line for line in lines)


def test_what_is_not_there_is_not_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    samples_path(run.path, "held_out", 0).unlink()
    outcome = outcome_of(run)
    assert outcome is not None
    assert outcome.change is None
    assert [line.split()[0] for line in exit_summary(run, 12, False, None)] == ["learned:", "kept:", "files:", "next:"]
    run.evaluations["held_out"] = run.evaluations["held_out"][1:]
    assert exit_summary(run, 12, False, None)[0].startswith("learned since generation 4: ")
    run.evaluations.clear()
    assert [line.split()[0] for line in exit_summary(run, 12, False, None)] == ["files:", "next:"]


def test_several_completions_of_a_problem_are_one_problem(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_problems=8)
    for generation, right in ((0, [0, 0, 1, 0]), (12, [1, 1, 1, 0])):
        path = samples_path(run.path, "held_out", generation)
        lines = read_samples(run, "held_out", generation)
        for i, line in enumerate(lines):
            line.update(index=i % 4, sample=i // 4, correct=bool(right[i % 4]), example={"i": i % 4})
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    outcome = outcome_of(RunFile.open(run.path))
    assert outcome is not None
    assert outcome.change is not None
    assert (outcome.change.num_better, outcome.change.num_worse, outcome.change.difference) == (2, 0, 0.5)
    assert outcome.change.p_value == 0.5


def test_completions_without_a_reward_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_problems=6)
    path = samples_path(run.path, "held_out", 12)
    lines = read_samples(run, "held_out", 12)
    for i, line in enumerate(lines):
        line.update(correct=True, reward=None if i < 4 else 1.0)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    was_right = sum(sample["correct"] for sample in read_samples(run, "held_out", 0)[4:])
    outcome = outcome_of(RunFile.open(run.path))
    assert outcome is not None
    assert outcome.change is not None
    assert outcome.change.num_better == 2 - was_right
    path.write_text("".join(f"{json.dumps(line | {'reward': None})}\n" for line in lines))
    outcome = outcome_of(RunFile.open(run.path))
    assert outcome is not None
    assert outcome.change is None
