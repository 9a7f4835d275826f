"""The commands from outside: what they import, print and return."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import ROOT, TINY_RUN

from esmpi import run
from esmpi.__main__ import main
from esmpi.commands import commands
from esmpi.commands._theta import verified
from esmpi.files import is_locked_elsewhere, locked
from esmpi.store.run_file import RunFile

CONFIG = """\
run: {{name: try}}
model: {{path: {model}, dtype: float32}}
es: {{generations: 3, population_size: 6}}
task: {{name: countdown}}
data: {{batch_size: 10}}
"""

COMMANDS = commands()

# Makes any import of these fail, then runs the module or function that is named.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({names!r})); {rest}"
MAIN = "from {module} import main; sys.exit(main({arguments!r}))"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)


def esmpi(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=100)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    save_file({"a.weight": np.zeros((30, 40), np.float32)}, model / "model.safetensors")
    path = tmp_path / "try.yaml"
    path.write_text(CONFIG.format(model=model))
    return path


def test_importing_the_config_is_cheap() -> None:
    heavy = {"torch", "numpy", "mpi4py", "transformers", "numba", "h5py"}
    result = python(f"import sys, esmpi.config.reader; print(sorted({heavy!r} & set(sys.modules)))")
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("esmpi.run", ["--help"]),
        ("esmpi.__main__", ["--help"]),
        ("esmpi.__main__", ["--version"]),
        *(("esmpi.__main__", [name, "--help"]) for name in COMMANDS),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_help_imports_nothing_heavy(module: str, arguments: list[str]) -> None:
    heavy = ["torch", "transformers", "numba", "mpi4py", "numpy", "h5py", "vllm", "matplotlib"]
    result = python(WITHOUT.format(names=heavy, rest=MAIN.format(module=module, arguments=arguments)))
    assert result.returncode == 0, result.stderr
    assert "esmpi" in result.stdout


def test_help_lists_every_command_with_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        "doctor",
        "eval",
        "export",
        "import",
        "init",
        "inspect",
        "probe",
        "replay",
        "report",
        "run",
        "submit",
        "sweep",
        "watch",
    ]
    assert list(COMMANDS) == names
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f" {name} {command.HELP} " in shown


HELLO = """\
HELP = "greet someone"

def add_arguments(parser):
    parser.add_argument("name")

def process(arguments):
    print("hello", arguments.name)
    return 3
"""


def test_a_new_file_is_a_new_command(tmp_path: Path) -> None:
    (tmp_path / "hello_.py").write_text(HELLO)
    (tmp_path / "_helper.py").write_text("raise AssertionError('this is no command')")
    added = f"import sys, esmpi.commands; esmpi.commands.__path__.append({str(tmp_path)!r}); "
    result = python(added + MAIN.format(module="esmpi.__main__", arguments=["hello", "there"]))
    assert (result.stdout, result.returncode) == ("hello there\n", 3), result.stderr
    result = python(added + MAIN.format(module="esmpi.__main__", arguments=["helper"]))
    assert "invalid choice: 'helper'" in result.stderr


def test_dry_run_tells_the_plan_without_torch_or_mpi(config_file: Path) -> None:
    arguments = [str(config_file), "--dry-run", "--ranks", "4", "es.sigma=2e-3", "es.noise=low_rank"]
    heavy = ["torch", "transformers", "numba", "mpi4py", "vllm"]
    result = python(WITHOUT.format(names=heavy, rest=MAIN.format(module="esmpi.run", arguments=arguments)))
    assert result.returncode == 0, result.stderr
    assert "sigma: 0.002" in result.stdout
    assert "# ranks           4, each evaluates 1 to 2 of 6 members" in result.stdout
    assert "60 completions (6 members x 10 prompts)" in result.stdout
    assert "sigma 0.002, alpha 0.001" in result.stdout
    assert "1,200 weights" in result.stdout
    assert "theta 4.7 KiB + live weights 4.7 KiB" in result.stdout
    resolved = config_file.with_name("resolved.yaml")
    resolved.write_text(result.stdout)  # what is printed is itself a config
    again = esmpi("esmpi.run", str(resolved), "--dry-run", "--ranks", "4")
    assert again.stdout == result.stdout
    assert not (config_file.parent / "runs").exists()


def test_dry_run_counts_snapshots(config_file: Path) -> None:
    assert "snapshots  " not in esmpi("esmpi.run", str(config_file), "--dry-run").stdout
    result = esmpi("esmpi.run", str(config_file), "--dry-run", "snapshot.every=5", "snapshot.best=true")
    assert "snapshots       at most 3 of 4.7 KiB; rank 0 has a copy of theta" in result.stdout


def test_dry_run_tells_the_memory_of_the_cache(config_file: Path) -> None:
    """Of engine hf: keys and values of each layer, key-value head, prompt and new token."""
    shape = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 128, "num_key_value_heads": 2}
    (config_file.parent / "model" / "config.json").write_text(json.dumps({"model_type": "llama"} | shape))
    result = esmpi("esmpi.run", str(config_file), "--dry-run", "sampling.max_tokens=50")
    size = 2 * 3 * 2 * 16 * 4 * 10 * 50 / 2**10  # in KiB, in float32
    assert f" + cache {size:.1f} KiB (10 prompts x 50 new tokens" in result.stdout


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["data.batch_size=8"], "at most 16 members on a CPU, 50 on a GPU with room for them"),
        (
            ["data.batch_size=8", "data.mini_batch_size=64"],
            "at most 16 members on a CPU, 50 on a GPU with room for them",
        ),
        (["engine.wave_size=3"], "at most 3 members"),
        (["engine.kind=vllm", "data.batch_size=32"], "at most 4 members on a CPU, 8 on a GPU with room for them"),
        (["engine.wave_size=1"], None),
        (["es.noise=full"], None),
    ],
)
def test_dry_run_tells_how_many_members_are_evaluated_at_once(
    config_file: Path, keys: list[str], expected: str | None
) -> None:
    said = esmpi("esmpi.run", str(config_file), "--dry-run", "es.noise=low_rank", "es.population_size=50", *keys).stdout
    if expected is None:
        assert "# waves" not in said
    else:
        assert f"# waves           {expected}; the noise of each takes " in said


def test_dry_run_says_which_ranks_idle(config_file: Path) -> None:
    result = esmpi("esmpi.run", str(config_file), "--dry-run", "--ranks", "9")
    assert "3 ranks have no member" in result.stdout


@pytest.mark.parametrize("module", [["esmpi.run"], ["esmpi", "run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{config}", "es.sgima=1"], "es.sgima: unknown key, did you mean sigma?"),
        (["{config}x"], "cannot read config {config}x: No such file or directory, did you mean {config}?"),
        (["{config}", "model.path={folder}/modle"], "no folder {folder}/modle, did you mean {folder}/model?"),
        (["{config}", "model.path=esmpi:zzz"], "model.path: no packaged model 'esmpi:zzz'"),
        (["{config}", "data.train=none.jsonl"], "data.train: no file none.jsonl"),
        (
            ["{config}", "run.fork_from={folder}/modle@3"],
            "run.fork_from: no run directory {folder}/modle, did you mean {folder}/model?",
        ),
        (["{config}", "task.name={folder}/none.py:reward"], "task.name: no file {folder}/none.py"),
        (["{config}", "task.name=env:{folder}/none.py:Game"], "task.name: no file {folder}/none.py"),
        (["{config}", "--ranks", "3"], "--ranks is for --dry-run"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    config_file: Path, module: list[str], arguments: list[str], expected: str
) -> None:
    names = {"config": str(config_file), "folder": str(config_file.parent)}
    result = esmpi(*module, *(argument.format(**names) for argument in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("esmpi: ")
    assert expected.format(**names) in result.stderr
    assert result.stderr.count("\n") == 1


def test_signals_are_the_callers_again(config_file: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    for one, arguments in ((run.main, [str(config_file)]), (main, ["run", str(config_file)])):
        assert one([*arguments, "--ranks", "3"]) == 2  # it finds that when it has taken the signals over
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


@pytest.mark.parametrize("path", ["models/my model", "models/a--b", "models/.a"])
def test_a_relative_folder_that_is_not_there_is_one_line_too(config_file: Path, path: str) -> None:
    result = esmpi("esmpi.run", str(config_file), "--dry-run", f"model.path={path}")
    assert result.returncode == 2
    assert result.stderr.startswith("esmpi: model.path: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: (model / "config.json").unlink(), "has no config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "holds no *.safetensors"),
        (
            lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {"b": "b.safetensors"}}'),
            "lacks b.safetensors",
        ),
    ],
    ids=["config", "weights", "part"],
)
def test_incomplete_models_are_refused(config_file: Path, change, expected: str) -> None:  # type: ignore[no-untyped-def]
    change(config_file.parent / "model")
    result = esmpi("esmpi.run", str(config_file), "--dry-run")
    assert result.returncode == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("ranks", ["0", "-2"])
def test_an_impossible_number_of_ranks_is_refused(config_file: Path, ranks: str) -> None:
    result = esmpi("esmpi.run", str(config_file), "--dry-run", f"--ranks={ranks}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [["replay"], ["report"], ["inspect"], ["export", "--out", "x"]], ids=lambda c: c[0])
def test_no_run_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"esmpi: no run file {tmp_path / 'run.h5'}: name the run's directory\n"


def test_unknown_options_are_refused(config_file: Path) -> None:
    result = esmpi("esmpi.run", str(config_file), "--dry-runn")
    assert result.returncode == 2
    assert "unrecognized arguments: --dry-runn" in result.stderr


def test_a_program_ends_with_all_but_taking_itself_apart(
    config_file: Path, watched_end: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry_run = ["esmpi.run", str(config_file), "--dry-run"]
    done = esmpi(*dry_run)
    assert done.returncode == 0
    assert done.stdout.endswith("live weights 4.7 KiB\nat exit\n")
    # a profiler's process is the profiler's
    done = esmpi("cProfile", "-m", *dry_run)
    assert "function calls" in done.stdout
    # a thread that is still at work is waited for
    monkeypatch.setenv("LATE", "3")
    done = esmpi(*dry_run)
    assert done.returncode == 0
    assert done.stdout.endswith("late\nat exit\ntaken apart\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sbatch", "es.sigma=2e-3"], "es.sigma is no option of sbatch"),
        (["--array", "run.name=a,b"], "run.name is made of the other keys"),
        (["--array", "sigma=1e-3,1e-3"], "two runs would have the name try_sigma=1e-3"),
        (["--nodes", "0"], "at least 1, got 0"),
        (["--time", "30", "--signal-delay", "1000"], "1000 s, but the time limit is 1800 s: at most half of it"),
        (["--array", "model.path=no/folder/here,x"], "model.path: no folder"),
    ],
)
def test_what_cannot_be_submitted(
    config_file: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(config_file), "--dry-run", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_overrides_may_follow_what_is_submitted(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = ["--array", "sigma=1e-3,2e-3", "--array", "alpha=1e-3,2e-3", "--sbatch", "partition=gpu"]
    assert main(["submit", str(config_file), "--dry-run", "--time", "20", *several, "run.name=pilot"]) == 0
    script = capsys.readouterr().out
    for line in ("partition=gpu", "array=0-3%4", "signal=B:USR2@300", "time=20"):
        assert f"#SBATCH --{line}\n" in script
    assert "export SLURM_EXPORT_ENV=ALL" in script


def test_doctor_says_what_is_missing_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", str(ROOT / "configs" / "quickstart.yaml"), f"run.output_dir={tmp_path}"]
    assert main(command) == 0
    assert "all is well" in capsys.readouterr().out
    assert main([*command, "model.path=no-such-organisation/no-model"]) == 2
    assert (
        "- model.path: no-such-organisation/no-model is not in the Hugging Face cache here" in capsys.readouterr().out
    )


def test_doctor_leaves_the_lock_of_a_run_that_is_only_beginning(config_file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "try"
    with locked(directory):
        done = esmpi("esmpi", "doctor", str(config_file), f"run.output_dir={tmp_path / 'runs'}")
        assert done.returncode == 2
        assert "is in use" in done.stdout
        assert is_locked_elsewhere(directory)  # as another process sees it


def test_output_that_nobody_takes(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "esmpi.run", str(config_file), "--dry-run"]
    done = subprocess.run(["bash", "-c", '"$@" > /dev/full', "bash", *command], capture_output=True, text=True)
    assert done.returncode == 120  # Python's own
    assert "No space left" in done.stderr
    done = subprocess.run(["bash", "-c", '"$@" >&-', "bash", *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_run_without_standard_streams(closed: str, tmp_path: Path) -> None:
    """Processes that compute rewards inherit them, and the next file that is opened would have their number."""
    words = ["es.population_size=2", "es.generations=1", "data.num_eval=2", "data.batch_size=2"]
    command = [sys.executable, "-m", "esmpi.run", str(TINY_RUN), f"run.output_dir={tmp_path}", *words]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *command], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert RunFile.open(tmp_path / "tiny" / "run.h5").num_generations == 1


@pytest.mark.parametrize(
    ("count", "generation", "said"),
    [
        (0, 0, "the base model is what the run had"),
        (1, 1, "the first generation is what the run had"),
        (2, 2, "all 2 generations are what the run had"),
        (1, 2, "1 of 2 generations is what the run had; the guard took back the other"),
        (2, 4, "2 of 4 generations are what the run had; the guard took back the others"),
    ],
)
def test_a_replay_says_what_it_has_verified(count: int, generation: int, said: str) -> None:
    assert verified(count, generation) == said
