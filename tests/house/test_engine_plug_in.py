"""The whole program with an engine of a user's own, in one file that nothing else knows."""

from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, Run, read, read_digests

from esmpi.__main__ import main

FILE = ROOT / "tests" / "house" / "echo_engine.py"
ENGINE = f"engine.kind={FILE}:EchoConfig"


@pytest.fixture(scope="module")
def trained(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on two ranks. Not to be changed."""
    output = tmp_path_factory.mktemp("echo")
    done = launch(["-m", "esmpi.run", TINY_RUN, ENGINE, f"run.output_dir={output}"], 2)
    assert done.returncode == 0, done.stderr + done.stdout
    return output / "tiny"


def train(output: Path, *overrides: str) -> int:
    """Train in this process; return the exit code."""
    return main(["run", str(TINY_RUN), ENGINE, f"run.output_dir={output}", *overrides])


def test_it_trains_with_the_engines_weights(trained: Path) -> None:
    columns = read(trained)
    assert len(set(read_digests(trained))) == 3
    assert columns["generations/fitness_std"].min() > 0  # what it says depends on the member's weights


def test_a_resumed_run_is_the_unbroken_one(trained: Path, tmp_path: Path) -> None:
    assert train(tmp_path, "es.generations=1") == 0
    # what the engine says changes no result may change
    assert train(tmp_path, "es.generations=3", "engine.remark=other", "engine.num_threads=2") == 0
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
def test_every_command_knows_the_engine(
    trained: Path, command: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained) if word == "RUN" else word for word in command]) == 0
    assert expected in capsys.readouterr().out


def test_the_engines_own_keys_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "engine.loudness=-1") == 2
    assert "engine.loudness: must be above 0, got -1" in capsys.readouterr().err


def test_what_changes_the_result_may_not_change(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(trained.parent, "engine.loudness=2", "engine.num_threads=2") == 2
    said = capsys.readouterr().err
    assert "engine.loudness: 100.0 -> 2.0" in said
    assert "num_threads" not in said


def test_a_replay_needs_no_engine(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone.py"
    gone.write_text(FILE.read_text())
    kind = f"engine.kind={gone}:EchoConfig"
    assert main(["run", str(TINY_RUN), kind, f"run.output_dir={tmp_path}", "es.generations=1"]) == 0
    gone.unlink()
    assert main(["replay", str(tmp_path / "tiny")]) == 0
    assert f"theta {read_digests(trained)[0]:016x}, as the run file has it" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "tiny"), str(trained)]) == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vlm", "engine.kind: unknown engine 'vlm', did you mean vllm?"),
        ("[vllm]", "engine.kind: unknown engine ['vllm']"),
        ("nowhere.py:Echo", "engine.kind: no file nowhere.py"),
        (f"{FILE}:Echo", "has no subclass of EngineConfig called 'Echo' (there is: EchoConfig)"),
        (f"{FILE}", "Write"),
    ],
)
def test_an_engine_that_is_not_there(kind: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(TINY_RUN), f"engine.kind={kind}"]) == 2
    assert expected in capsys.readouterr().err


def test_a_file_that_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert main(["run", str(TINY_RUN), f"engine.kind={tmp_path}/broken.py:Echo"]) == 2
    assert "broken.py cannot be run: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_engine_that_does_not_say_what_it_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half.py").write_text(
        "from dataclasses import dataclass\nfrom esmpi.engines import EngineConfig\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Half(EngineConfig):\n    kind: str = 'half'\n"
    )
    assert main(["run", str(TINY_RUN), f"engine.kind={tmp_path}/half.py:Half", f"run.output_dir={tmp_path}"]) == 2
    assert "engine.kind: Half does not say which engine it opens" in capsys.readouterr().err
