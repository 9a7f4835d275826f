"""Task gym:<name>: all data sets of reasoning-gym, and that no completion is executed for a score."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from test_tasks import make

from esmpi.config.reader import ConfigError
from esmpi.errors import UserError
from esmpi.tasks.gym import _REFUSED, Gym


def gym(name: str, **keys: object) -> Gym:
    task = make(f"gym:{name}", **keys)
    assert isinstance(task, Gym)
    return task


@pytest.fixture(scope="module", autouse=True)
def library() -> object:
    make("gym:chain_sum")
    import reasoning_gym

    return reasoning_gym


def names() -> list[str]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(set(DATASETS) - set(_REFUSED))


@pytest.mark.parametrize("name", names())
def test_any_data_set_makes_prompts_and_scores(name: str) -> None:
    task = gym(name)
    draw = task.generator(np.random.default_rng(0))
    example = draw()
    assert json.loads(json.dumps(example)) == example
    task.check(example)
    assert example["question"] in task.prompt(example)
    assert task.score("", example).reward == 0
    for wrong in ("<answer>\ud800</answer>", "<answer>no idea</answer>", "<answer>" + "9" * 20_000 + "</answer>"):
        assert not task.score(wrong, example).correct
    if isinstance(example["answer"], str):  # some have no one answer that is known
        right = task.score(f"so <answer>{example['answer']}</answer>", example)
        assert (right.reward, right.correct) == (pytest.approx(1), True)


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"task\.name: gym:{name} cannot be used: "):
        gym(name)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"no data set gym:chain_sun, did you mean gym:chain_sum\?"):
        gym("chain_sun")
    for params in ({"min_term": 2}, {"min_terms": -3}, {"min_terms": "x"}):
        with pytest.raises(UserError, match=r"task\.params: gym:chain_sum does not take"):
            gym("chain_sum", params=params)
    with pytest.raises(UserError, match=r"task\.params: seed is set by esmpi"):
        gym("chain_sum", params={"seed": 1})
    with pytest.raises(ConfigError, match=r"task\.parms: unknown key, did you mean params\?"):
        gym("chain_sum", parms={})


def test_settings_reach_the_data_set() -> None:
    task = gym("chain_sum", params={"min_terms": 7, "max_terms": 7})
    draw = task.generator(np.random.default_rng(0))
    for _ in range(20):
        question = draw()["question"]
        assert question.count(" + ") + question.count(" - ") == 6


def test_examples_are_the_seeds_alone_and_files_are_checked() -> None:
    task = gym("chain_sum")
    one, other = (task.generator(np.random.default_rng(4)) for _ in range(2))
    examples = [one() for _ in range(20)]
    assert examples == [other() for _ in range(20)]
    assert len({task.key(example) for example in examples}) == 20
    with pytest.raises(ValueError, match="`question` is not what gym:chain_sum makes of `seed`"):
        task.check(examples[0] | {"question": "What is 1 + 1?"})
    for seed in (None, -1, 2**31, True, "1"):
        with pytest.raises(ValueError, match="`seed` must be"):
            task.check(examples[0] | {"seed": seed})


_CHILD = """
import hashlib, json, sys
import numpy as np
from esmpi.tasks.gym import Gym, GymConfig
for name in json.loads(sys.stdin.read()):
    draw = Gym(GymConfig(name="gym:" + name)).generator(np.random.default_rng(0))
    print(name, hashlib.sha256(json.dumps([draw() for _ in range(5)]).encode()).hexdigest())
"""


def test_every_process_makes_the_same_problems() -> None:
    """Ranks generate the problems by themselves, and Python hashes text otherwise in each process."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(names()),
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0].count("\n") == len(names())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", names())
def test_no_completion_is_executed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that would leave a file if executed, in the forms that a scorer might execute."""
    task = gym(name)
    example = task.generator(np.random.default_rng(0))()
    trace = tmp_path / "executed"
    executed: list[object] = []
    real = builtins.eval

    def watch(source: object, *rest: object) -> object:
        executed.append(source)
        return real(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "eval", watch)
    code = f"open({str(trace)!r}, 'w').close()"
    for answer in (code, f"[{code}]", f"[[{code}]]", f"({code}, 1)[1]", f"__import__('os').system('touch {trace}')"):
        assert not task.score(f"<answer>{answer}</answer>", example).correct
        assert not any(str(trace) in str(source) for source in executed)
    assert not trace.exists()


def test_the_trap_catches_what_reasoning_gym_itself_would_do(tmp_path: Path) -> None:
    """Its own scoring executes the answer: the reason for the data sets that are compared here instead."""
    for name in ("binary_matrix", "n_queens", "spiral_matrix"):
        trace = tmp_path / name
        dataset, entry = gym(name)._entry(3)
        dataset.score_answer(f"[open({str(trace)!r}, 'w').close()]", entry)
        assert trace.exists(), name


def test_arithmetic_has_many_right_answers() -> None:
    task = gym("puzzle24")
    example = task.generator(np.random.default_rng(0))()
    _, entry = task._entry(example["seed"])
    assert task.score(f"<answer>({example['answer']}) </answer>", example).correct
    assert not task.score("<answer>24</answer>", example).correct
    assert not task.score("<answer>9**9**9**9</answer>", example).correct
    assert len(entry["metadata"]["numbers"]) == 4
