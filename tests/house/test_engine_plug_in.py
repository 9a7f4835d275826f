"""The whole program with an engine of a user's own, in one file that nothing else knows."""

from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, Run, read, read_digests

ENGINE = f"engine.kind={ROOT / 'tests' / 'house' / 'echo_engine.py'}:EchoConfig"


@pytest.fixture(scope="module")
def trained(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on two ranks."""
    output = tmp_path_factory.mktemp("echo")
    done = launch(["-m", "esmpi.run", TINY_RUN, ENGINE, f"run.output_dir={output}"], 2)
    assert done.returncode == 0, done.stderr + done.stdout
    return output / "tiny"


def test_it_trains_with_the_engines_weights(trained: Path) -> None:
    columns = read(trained)
    assert len(set(read_digests(trained))) == 3
    assert columns["generations/fitness_std"].min() > 0  # what it says depends on the member's weights


def test_a_resumed_run_is_the_unbroken_one(launch: Run, trained: Path, tmp_path: Path) -> None:
    start = ["-m", "esmpi.run", TINY_RUN, ENGINE, f"run.output_dir={tmp_path}"]
    for more in (["es.generations=1"], ["es.generations=3"]):
        done = launch([*start, *more], 0)
        assert done.returncode == 0, done.stderr + done.stdout
    assert read_digests(tmp_path / "tiny") == read_digests(trained)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["eval", "RUN", "--generation", "1"], "at generation 1: accuracy"),
        (["replay", "RUN", "--verify"], "all 3 generations are what the run had"),
        (["report", "RUN", "--no-plot"], "3 of 3 generations"),
        (["inspect", "RUN"], "good"),
        (["run", str(TINY_RUN), ENGINE, "--dry-run"], "822,656 weights"),
        (["doctor", str(TINY_RUN), ENGINE], "all is well"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_knows_the_engine(launch: Run, trained: Path, command: list[str], expected: str) -> None:
    done = launch(["-m", "esmpi", *(str(trained) if word == "RUN" else word for word in command)], 0)
    assert done.returncode == 0, done.stderr + done.stdout
    assert expected in done.stdout


def test_the_engines_own_keys_are_checked(launch: Run, tmp_path: Path) -> None:
    done = launch(["-m", "esmpi.run", TINY_RUN, ENGINE, "engine.loudness=-1", f"run.output_dir={tmp_path}"], 0)
    assert done.returncode == 2
    assert "engine.loudness: must be above 0, got -1" in done.stderr


def test_what_changes_the_result_may_not_change(launch: Run, trained: Path) -> None:
    changed = ["engine.loudness=2", "engine.num_threads=2"]
    done = launch(["-m", "esmpi.run", TINY_RUN, ENGINE, *changed, f"run.output_dir={trained.parent}"], 0)
    assert done.returncode == 2
    assert "engine.loudness: 100.0 -> 2.0" in done.stderr
    assert "num_threads" not in done.stderr


def test_what_the_engine_says_changes_no_result_may_change(launch: Run, trained: Path, tmp_path: Path) -> None:
    start = ["-m", "esmpi.run", TINY_RUN, ENGINE, f"run.output_dir={tmp_path}"]
    for more in (["es.generations=1"], ["es.generations=2", "engine.remark=other"]):
        done = launch([*start, *more], 0)
        assert done.returncode == 0, done.stderr + done.stdout
    assert read_digests(tmp_path / "tiny") == read_digests(trained)[:2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vlm", "engine.kind: unknown engine 'vlm', did you mean vllm?"),
        ("nowhere.py:Echo", "engine.kind: no file nowhere.py"),
        ("tests/house/echo_engine.py:Echo", "has no subclass of EngineConfig called 'Echo' (there is: EchoConfig)"),
        ("tests/house/echo_engine.py", "Write tests/house/echo_engine.py:NAME"),
    ],
)
def test_an_engine_that_is_not_there(launch: Run, kind: str, expected: str) -> None:
    done = launch(["-m", "esmpi.run", TINY_RUN, f"engine.kind={kind}"], 0)
    assert done.returncode == 2
    assert expected in done.stderr
