"""`import esmpi`: light, and what stands in the module is what the documentation says."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, TINY_RUN, Run, read_digests

import esmpi
from esmpi.__main__ import main

SMALL = {"es": {"generations": 2, "population_size": 3}, "data": {"num_eval": 4, "batch_size": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> esmpi.Run:
    output = tmp_path_factory.mktemp("tuned")
    return esmpi.tune(TINY_RUN, run={"output_dir": str(output)}, snapshot={"every": 1}, **SMALL)


def test_the_door_is_light_and_typed() -> None:
    program = (
        "import sys, esmpi; print([m for m in ('torch', 'mpi4py', 'numpy', 'msgspec', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert (Path(esmpi.__file__).parent / "py.typed").exists()
    for name in esmpi.__all__:
        assert getattr(esmpi, name) is not None
        assert name in dir(esmpi)
    with pytest.raises(AttributeError, match="no attribute 'tunes'"):
        esmpi.tunes  # noqa: B018


@pytest.mark.parametrize("module", ["esmpi.train", "esmpi.setup", "esmpi.ensemble", "esmpi.probe"])
def test_what_stands_around_an_engine_loads_no_numba(module: str) -> None:
    """vLLM looks into all that is loaded when it starts, and fails at llvmlite, which forks of the tests load late."""
    program = f"import sys, {module}; print('llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_tune_is_the_main_program(run: esmpi.Run, launch: Run, tmp_path: Path) -> None:
    overrides = [f"{section}.{key}={value}" for section, keys in SMALL.items() for key, value in keys.items()]
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *overrides], 0)
    assert done.returncode == 0, done.stderr
    assert run.generations["theta_digest"].tolist() == read_digests(tmp_path / "tiny")
    assert run.finished
    assert repr(run).startswith(f"<esmpi.Run {run.directory}: 2 of 2 generations, theta ")


def test_tune_resumes_and_takes_a_mapping(run: esmpi.Run, tmp_path: Path) -> None:
    config = json.loads(json.dumps(run.config))
    config["run"] |= {"output_dir": str(tmp_path), "export_dtype": "none"}
    first = esmpi.tune(config, es={"generations": 1})
    assert first.num_generations == 1
    again = esmpi.tune(config)
    assert again.generations["theta_digest"].tolist() == run.generations["theta_digest"].tolist()


def test_tune_works_outside_the_main_thread_and_leaves_signals_alone(run: esmpi.Run, tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    found: list[esmpi.Run] = []
    settings = run.config | {"run": run.config["run"] | {"output_dir": str(tmp_path)}}
    thread = threading.Thread(target=lambda: found.append(esmpi.tune(settings, es={"generations": 0})))
    thread.start()
    thread.join()
    assert found[0].num_generations == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_tune_leaves_the_process_as_it_was(run: esmpi.Run, tmp_path: Path) -> None:
    logger, own = logging.getLogger("esmpi"), logging.NullHandler()
    logger.addHandler(own)
    kept = logger.handlers, logger.propagate, logger.level, logging.raiseExceptions
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings = run.config | {"run": run.config["run"] | {"output_dir": tmp_path}}
        esmpi.tune(settings, es={"generations": 0}, engine={"num_threads": 1})
        assert torch.get_num_threads() == 2
        assert (logger.handlers, logger.propagate, logger.level, logging.raiseExceptions) == kept
    finally:
        torch.set_num_threads(before)
        logger.removeHandler(own)


def test_keys_without_a_use_are_a_warning(run: esmpi.Run, tmp_path: Path) -> None:
    settings = run.config | {"engine": {"kind": "vllm", "max_model_len": 64}}
    expected = r"engine\.kind=hf does not use these keys of the config: engine\.max_model_len"
    with pytest.warns(UserWarning, match=expected) as caught:
        esmpi.tune(settings, engine={"kind": "hf"}, es={"generations": 0}, run={"output_dir": tmp_path})
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=expected), pytest.raises(esmpi.UserError, match=r"model\.path"):
        esmpi.submit(settings, {"engine": {"kind": "hf"}, "model": {"path": "./nowhere"}})


def test_a_log_only_file_has_the_columns_that_it_stores(run: esmpi.Run, tmp_path: Path) -> None:
    assert main(["export", str(run.directory), "--log-only", "--out", str(tmp_path / "log.h5")]) == 0
    log = esmpi.open_run(tmp_path / "log.h5")
    assert log.members.columns.tolist() == ["generation", "member", "seed", "coefficient"]
    assert log.members.equals(run.members[log.members.columns])
    assert log.generations.columns.tolist() == ["generation", "theta_digest", "shrink"]
    assert log.evaluations.equals(run.evaluations)


def test_a_wrong_config_raises(tmp_path: Path) -> None:
    with pytest.raises(esmpi.UserError, match=r"es\.sgima: unknown key, did you mean sigma\?"):
        esmpi.tune(TINY_RUN, es={"sgima": 1})
    with pytest.raises(esmpi.UserError, match=r"model\.path: no folder"):
        esmpi.tune(TINY_RUN, run={"output_dir": str(tmp_path)}, model={"path": "./nowhere"})
    with pytest.raises(esmpi.UserError, match="no run file"):
        esmpi.open_run(tmp_path)


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """The processes that compute rewards do not import it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import esmpi\n"
        "print('once')\n"
        f"esmpi.tune({str(TINY_RUN)!r}, run={{'output_dir': {str(tmp_path)!r}}}, es={{'generations': 0}})\n"
        "print(__file__, __spec__)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments, text in (([str(script)], None), (["-"], script.read_text().replace("__file__", "'-'"))):
        done = subprocess.run(
            [sys.executable, *arguments], input=text, capture_output=True, text=True, env=environment, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("once") == 1
        assert done.stdout.splitlines()[-1] == f"{arguments[0]} None"


def test_a_worker_that_imports_a_script_is_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, esmpi\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    process.start()\n"
        "    process.join()\n"
        "else:\n"
        f"    esmpi.tune({str(TINY_RUN)!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=200)
    assert "put the call of esmpi.tune under `if __name__ == '__main__':`" in done.stderr


def test_wrong_inputs_are_raised_on_all_ranks(launch: Run, tmp_path: Path) -> None:
    script, where = tmp_path / "script.py", {"output_dir": str(tmp_path)}
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import esmpi\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        esmpi.tune({str(TINY_RUN)!r}, model={{'path': './nowhere'}}, run={where!r})\n"
        "    except esmpi.UserError as error:\n"
        "        sys.stdout.write(f'raised {error}\\n')\n"
    )
    done = launch([script], 2, timeout_s=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("raised model.path: no folder ./nowhere") == 2


def test_values_of_python_become_values_of_the_config(tmp_path: Path) -> None:
    odd = 'say "hi" # to: {you} \U0001f600'
    numbers = {"sigma": np.float32(0.5), "generations": np.int64(3)}
    with pytest.raises(esmpi.UserError) as error:
        esmpi.tune(TINY_RUN, run={"output_dir": tmp_path}, es=numbers, model={"path": f"./{odd}"})
    assert odd in str(error.value)  # the numbers and the path were taken: only the model is not there
    with pytest.raises(TypeError, match=r"sections with their keys are needed, such as es=.*; got sigma=0\.001"):
        esmpi.tune(TINY_RUN, sigma=1e-3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"es\.sigma: a config has no values of type object"):
        esmpi.tune(TINY_RUN, es={"sigma": object()})


def test_frames_have_what_the_run_file_has(run: esmpi.Run) -> None:
    assert run.generations["generation"].tolist() == [0, 1]
    members = run.members
    assert members[["generation", "member"]].to_numpy().tolist() == [[g, m] for g in range(2) for m in range(3)]
    mean = members.groupby("generation")["fitness"].mean()
    np.testing.assert_allclose(mean, run.generations["fitness_mean"], rtol=1e-12)
    held_out = run.evaluations.query("suite == 'held_out'")
    assert held_out["generation"].tolist() == [0, 2]
    samples = run.samples()
    assert len(samples) == 4
    assert samples["reward"].mean() == pytest.approx(held_out["reward_mean"].iloc[-1])
    assert len(run.samples(generation=0)) == 4
    with pytest.raises(esmpi.UserError, match="held_out was not evaluated at generation 1, but at 0, 2"):
        run.samples(generation=1)
    with pytest.raises(esmpi.UserError, match="no evaluation of 'held_ou'"):
        run.samples("held_ou")


def test_theta_of_any_generation(run: esmpi.Run) -> None:
    base, last = run.theta(0), run.theta()
    assert base.keys() == last.keys() == run.theta(1).keys()
    assert all(tensor.dtype == torch.float32 for tensor in last.values())
    assert any(not torch.equal(base[name], last[name]) for name in base)
    with pytest.raises(esmpi.UserError, match="generation 3"):
        run.theta(3)


def test_plot_returns_a_picture(run: esmpi.Run, tmp_path: Path) -> None:
    run.plot().savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_run_without_generations_has_empty_frames(run: esmpi.Run, tmp_path: Path) -> None:
    settings = run.config | {"run": run.config["run"] | {"output_dir": str(tmp_path)}}
    empty = esmpi.tune(settings, es={"generations": 0})
    assert len(empty.generations) == len(empty.members) == 0
    assert len(empty.evaluations) == 1
