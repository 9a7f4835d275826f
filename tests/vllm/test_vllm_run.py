"""Whole runs with engine vllm: the same bits as with hf, on two ranks, in mini-batches, and resumed by either."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import ROOT, TINY_RUN, VLLM_SMALL, Run, assert_same_run, read, samples, train

# cuts some completions off, others end just there; and prompts enough that members differ in each generation
BOTH = ("sampling.max_tokens=30", "data.batch_size=16", "eval.divergence=true")
ENGINES = {
    "hf": BOTH,
    "vllm": (*BOTH, "engine.kind=vllm", *(f"engine.{key}={value}" for key, value in VLLM_SMALL.items())),
}


@pytest.fixture(scope="module")
def hf_run(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("hf")
    train(launch, output, 0, *ENGINES["hf"])
    return output / "tiny"


@pytest.fixture(scope="module")
def vllm_run(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("vllm")
    train(launch, output, 0, *ENGINES["vllm"])
    return output / "tiny"


def test_both_engines_lead_to_the_same_theta(hf_run: Path, vllm_run: Path) -> None:
    assert_same_run(vllm_run, hf_run)
    theta, expected = (load_file(run / "model" / "model.safetensors") for run in (vllm_run, hf_run))
    assert theta.keys() == expected.keys()
    for name, values in theta.items():
        np.testing.assert_array_equal(values.view(np.uint32), expected[name].view(np.uint32), err_msg=name)


def test_both_engines_tell_the_same_divergence(hf_run: Path, vllm_run: Path) -> None:
    one, other = read(vllm_run), read(hf_run)
    kl, expected = (run["evaluations/held_out/kl_per_token"] for run in (one, other))
    assert kl[0] == expected[0] == 0
    assert kl[-1] == pytest.approx(expected[-1], rel=1e-3)
    assert expected[-1] > 1e-5
    distance = "evaluations/held_out/theta_distance"
    np.testing.assert_allclose(one[distance], other[distance], rtol=1e-9)


def test_the_comparisons_compare_something(vllm_run: Path) -> None:
    run = read(vllm_run)
    assert (run["members/fitness"].std(axis=1) > 0).all()
    assert len(set(run["generations/theta_digest"].tolist())) == 3
    before, after = samples(vllm_run).values()
    assert before != after
    assert {json.loads(line)["truncated"] for line in after.splitlines()} == {True, False}


def test_two_ranks_with_a_core_each(launch: Run, vllm_run: Path, tmp_path: Path) -> None:
    say_cores = (
        "import os, pathlib, sys\n"
        "from esmpi import run\n"
        "code = run.main(sys.argv[2:])\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        "pathlib.Path(sys.argv[1], f'{os.getpid()}.cores').write_text(str(cores))\n"
        "sys.exit(code)\n"
    )
    run = train(launch, tmp_path, 2, *ENGINES["vllm"], program=["-c", say_cores, tmp_path])
    assert set(run["members/rank"].ravel()) == {0, 1}
    assert_same_run(tmp_path / "tiny", vllm_run)
    cores = [json.loads(path.read_text()) for path in tmp_path.glob("*.cores")]
    assert [len(one) for one in cores] == [1, 1]
    assert cores[0] != cores[1] or len(os.sched_getaffinity(0)) == 1


def test_mini_batches_change_nothing(launch: Run, vllm_run: Path, tmp_path: Path) -> None:
    train(launch, tmp_path, 0, *ENGINES["vllm"], "data.mini_batch_size=3")
    assert_same_run(tmp_path / "tiny", vllm_run)


def test_waves_lead_to_the_same_theta_on_both_engines(launch: Run, tmp_path: Path) -> None:
    keys = ("es.noise=low_rank", "es.generations=2", "data.batch_size=8", "eval.every=1")
    hf = train(launch, tmp_path / "hf", 0, *ENGINES["hf"], *keys)
    vllm = train(launch, tmp_path / "vllm", 2, *ENGINES["vllm"], *keys, "engine.max_num_seqs=24", "es.dispatch=dynamic")
    assert hf["members/coefficient"].all()
    for column in ("members/fitness", "members/coefficient", "generations/theta_digest"):
        np.testing.assert_array_equal(vllm[column], hf[column], err_msg=column)
    assert samples(tmp_path / "vllm" / "tiny") == samples(tmp_path / "hf" / "tiny")


def test_members_with_prompts_of_their_own_and_their_votes_on_both_engines(launch: Run, tmp_path: Path) -> None:
    keys = ("es.noise=low_rank", "es.generations=1", "data.batch_size=8", "data.prompts=per_member")
    keys = (*keys, "eval.control_every=1", "eval.divergence=false", "run.export_dtype=none")
    hf = train(launch, tmp_path / "hf", 0, *ENGINES["hf"], *keys)
    vllm = train(launch, tmp_path / "vllm", 0, *ENGINES["vllm"], *keys)
    for column in ("members/fitness", "generations/theta_digest", "generations/fitness_theta"):
        np.testing.assert_array_equal(vllm[column], hf[column], err_msg=column)
    assert np.isfinite(hf["generations/fitness_theta"]).all()
    for engine, overrides in ENGINES.items():
        run = tmp_path / engine / "tiny"
        options = [word for word in overrides if word.startswith("engine.")]
        done = launch(["-m", "esmpi", "eval", run, "--ensemble", "3", *options], 0)
        assert done.returncode == 0, done.stderr
    [ours, theirs] = [samples(tmp_path / engine / "tiny")["g000000.ensemble_3.jsonl"] for engine in ENGINES]
    assert ours == theirs
    assert any(len(json.loads(line)["votes"]) > 1 for line in ours.splitlines())


@pytest.mark.parametrize(("first", "second"), [("vllm", "hf"), ("hf", "vllm")])
def test_one_engine_goes_on_where_the_other_stopped(
    launch: Run, vllm_run: Path, tmp_path: Path, first: str, second: str
) -> None:
    begun = train(launch, tmp_path, 0, *ENGINES[first], "es.generations=2")
    ended = train(launch, tmp_path, 0, *ENGINES[second])
    whole = read(vllm_run)
    # the first two generations are those of the first engine, not computed again
    np.testing.assert_array_equal(ended["generations/unix_time"][:2], begun["generations/unix_time"])
    for column in ("generations/theta_digest", "members/fitness"):
        np.testing.assert_array_equal(ended[column], whole[column], err_msg=column)
    last = "g000003.held_out.jsonl"
    assert samples(tmp_path / "tiny")[last] == samples(vllm_run)[last]


def test_smollm2_is_led_to_the_same_theta(launch: Run, smollm2: str, tmp_path: Path) -> None:
    overrides = (
        *(f"model.path={smollm2}", "run.export_dtype=none"),
        *("es.population_size=2", "es.generations=1", "sampling.max_tokens=8"),
        *(f"task.name={Path(__file__).parent / 'rewarded.py'}:checksum", "data.train=builtin", "data.eval=builtin"),
        *("data.num_train=4", "data.batch_size=4", "data.num_eval=1"),
    )
    hf = train(launch, tmp_path / "hf", 0, *overrides)
    # the self-test takes as long as all the rest, and test_engine.py has it
    overrides = (*ENGINES["vllm"], *overrides, "engine.self_test=false")
    vllm = train(launch, tmp_path / "vllm", 0, *overrides)
    assert hf["members/coefficient"].all(), "no reward differs, so no weight moves"
    for column in ("members/fitness", "members/coefficient", "generations/theta_digest"):
        np.testing.assert_array_equal(vllm[column], hf[column], err_msg=column)


@pytest.mark.parametrize("when", ["start", "generation"])
def test_a_signal_to_all_processes_leaves_the_workers_to_the_rank(tmp_path: Path, when: str) -> None:
    """As a terminal's Ctrl-C and Slurm do: vLLM's workers must live until the rank has ended its generation."""
    command = [sys.executable, "-m", "esmpi.run", str(TINY_RUN), f"run.output_dir={tmp_path}", "es.generations=1000"]
    command += [*ENGINES["vllm"], "engine.tensor_parallel_size=2", "engine.self_test=false"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if when == "start" and line.startswith("vLLM: starting"):
                wait_for_worker(process.pid)
                os.killpg(process.pid, signal.SIGUSR1)
                os.killpg(process.pid, signal.SIGINT)
            if when == "generation" and " 1/" in line and line.startswith("generation"):
                os.killpg(process.pid, signal.SIGINT)
    text = "".join(said)
    assert process.returncode == 75, text
    done = {"start": 0, "generation": 2}[when]
    assert re.search(rf"asked to stop by SIG\w+: theta of generation {done} is committed", text)
    assert len(read(tmp_path / "tiny")["generations/fitness_mean"]) == done


def wait_for_worker(group: int) -> None:
    """Wait until a worker is being started, and still has to import what it needs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process ended
                if os.getpgid(int(folder.name)) == group and b"spawn_main" in (folder / "cmdline").read_bytes():
                    return
        time.sleep(0.05)
    raise TimeoutError("no worker")


GENERATE = """
import json, sys
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model = LLM(folder, dtype="float32", seed=0, **json.loads(sys.argv[3]))
    said = model.generate(prompts, SamplingParams(temperature=0, max_tokens=30))
    print(json.dumps([one.outputs[0].text for one in said]))
"""


def test_an_export_says_in_vllm_what_the_evaluation_has(vllm_run: Path, tmp_path: Path) -> None:
    """Theta is rebuilt from the log, without the engine that trained it."""
    out = tmp_path / "model"
    command = [sys.executable, "-m", "esmpi", "export", vllm_run, "--from-base", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    expected = [json.loads(line) for line in samples(vllm_run)["g000003.held_out.jsonl"].splitlines()]
    prompts = json.dumps([one["prompt"] for one in expected])
    program = tmp_path / "generate.py"
    program.write_text(GENERATE)
    command = [sys.executable, program, out, prompts, json.dumps(VLLM_SMALL)]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | small)
    assert done.returncode == 0, done.stderr[-4000:]
    completions = json.loads(done.stdout.splitlines()[-1])
    assert completions == [one["completion"] for one in expected]
    before = [json.loads(line)["completion"] for line in samples(vllm_run)["g000000.held_out.jsonl"].splitlines()]
    assert completions != before


def test_smollm2_from_log_snapshot_and_live_is_the_same_theta(launch: Run, smollm2: str, tmp_path: Path) -> None:
    overrides = (
        *(f"model.path={smollm2}", "es.population_size=2", "es.generations=1", "sampling.max_tokens=8"),
        *("data.num_train=4", "data.batch_size=4", "data.num_eval=1", "snapshot.every=1"),
        "es.sigma=1e-2",  # enough for rewards to differ
    )
    run = train(launch, tmp_path, 0, *overrides)
    assert run["members/coefficient"].all(), "no reward differs, so no weight moves"
    command = [
        sys.executable,
        "-m",
        "esmpi",
        "export",
        tmp_path / "tiny",
        "--from-base",
        "--out",
        tmp_path / "replayed",
    ]
    subprocess.run(command, check=True, capture_output=True)
    live, replayed = (load_file(f / "model.safetensors") for f in (tmp_path / "tiny" / "model", tmp_path / "replayed"))
    assert live.keys() == replayed.keys()
    with h5py.File(tmp_path / "tiny" / "run.h5") as file:
        assert run["generations/theta_digest"][0] != file.attrs["model_digest"]
    with h5py.File(tmp_path / "tiny" / "snapshots" / "g000001.h5") as snapshot:
        for name, values in live.items():
            bits = values.view(np.uint32)
            np.testing.assert_array_equal(replayed[name].view(np.uint32), bits, err_msg=name)
            np.testing.assert_array_equal(snapshot["theta"][name][()].view(np.uint32), bits, err_msg=name)
