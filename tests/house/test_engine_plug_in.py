"""The whole program with an engine of a user's own, in one file that nothing else knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, Run, read, read_digests

from esmpi.__main__ import main
from esmpi.store.run_file import RunFile

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
        (["eval", "RUN", ENGINE, "--generation", "1"], "at generation 1: accuracy"),
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


ENGINE_FILE = """
from dataclasses import dataclass
from typing import Any, ClassVar
from esmpi.engines import Engine, EngineConfig
class Half(Engine):
    max_length = None
@dataclass(frozen=True, kw_only=True)
class HalfConfig(EngineConfig):
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    kind: str = 'half'", "HalfConfig does not say which engine it opens: set `engine`"),
        ("    engine: ClassVar[Any] = 3", "HalfConfig.engine must be a subclass of Engine, or 'module:Class', got 3"),
        ("    engine: ClassVar[Any] = Half", "Half lacks what every engine has: generate, logprobs"),
        (
            "    engine: ClassVar[Any] = 'no.such:Half'",
            "no.such:Half cannot be imported: ModuleNotFoundError",
        ),
        ("    engine: ClassVar[Any] = 'json:Half'", "json:Half cannot be imported: AttributeError: module 'json'"),
        ("    engine: ClassVar[Any] = Half\n    a: 'Nothing' = 1", "the type of a key of HalfConfig cannot be read"),
    ],
)
def test_an_engine_that_is_not_one(
    tmp_path: Path, body: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half.py").write_text(f"{ENGINE_FILE}{body}\n")
    assert main(["run", str(TINY_RUN), f"engine.kind={tmp_path}/half.py:HalfConfig", f"run.output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said


def test_the_contract_is_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(TINY_RUN), f"engine.kind={FILE}:EngineConfig"]) == 2
    assert "has no subclass of EngineConfig called 'EngineConfig'" in capsys.readouterr().err


def test_a_file_is_executed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "counted.py"
    file.write_text(f"with open({str(tmp_path / 'count')!r}, 'a') as out:\n    out.write('x')\n" + FILE.read_text())
    command = ["run", str(TINY_RUN), f"engine.kind={file}:EchoConfig", f"run.output_dir={tmp_path}"]
    assert main([*command, "es.generations=1"]) == 0
    assert main([*command, "es.generations=2"]) == 0
    assert (tmp_path / "count").read_text() == "x"
    file.write_text(file.read_text().replace('"loudness"', '"volume"').replace("loudness", "volume"))
    assert main([*command, "engine.volume=-1"]) == 2  # what was changed is read again
    assert "engine.volume: must be above 0" in capsys.readouterr().err


def test_another_engine_can_take_over(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An override of the engine drops the keys of the config's own, which may be in a file that is gone."""
    file, config = tmp_path / "gone.py", tmp_path / "echo.yaml"
    file.write_text(FILE.read_text())
    engine = f"engine:\n  kind: {file}:EchoConfig\n  loudness: 50\n"
    config.write_text(TINY_RUN.read_text().replace("engine:\n", engine))
    command = ["run", str(config), f"run.output_dir={tmp_path}"]
    assert main([*command, "es.generations=1"]) == 0
    file.unlink()
    capsys.readouterr()
    assert main([*command, "es.generations=2", "engine.kind=hf"]) == 0
    captured = capsys.readouterr()
    assert "engine.kind=hf does not use these keys of the config: engine.loudness" in captured.err
    assert "resuming from generation 1" in captured.out
    run = RunFile.open(tmp_path / "tiny" / "run.h5")
    run.attributes["config"]["engine"] = {"kind": f"{file}:EchoConfig", "loudness": 50, "num_threads": 1}
    run.write()
    assert main(["eval", str(tmp_path / "tiny"), "engine.kind=hf"]) == 0
    captured = capsys.readouterr()
    assert "does not use these keys of the config: engine.loudness" in captured.err
    assert "held-out at generation 2" in captured.out


def test_an_installed_package_offers_an_engine(tmp_path: Path) -> None:
    (tmp_path / "echo_package.py").write_text(FILE.read_text())
    info = tmp_path / "echo_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[esmpi.engines]\necho = echo_package:EchoConfig\nodd = echo_package:View\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}

    def run(kind: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "esmpi.run", str(TINY_RUN), f"engine.kind={kind}", "engine.loudness=50"]
        return subprocess.run(
            [*command, f"run.output_dir={tmp_path}", "es.generations=1"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    done = run("echo")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "tiny")["generations/generation"].tolist() == [0]
    refused = run("odd")
    assert refused.returncode == 2
    assert "the entry point odd of esmpi.engines is not a subclass of esmpi.engines.base.EngineConfig" in refused.stderr
