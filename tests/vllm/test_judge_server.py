"""A judge and a run against a real server: `vllm serve` on a CPU."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, Run, read, samples, sweep

START_LIMIT_S = 300
TASK = """\
from esmpi.rewards import Judge

train = [{"prompt": f"Name a color. {i}:"} for i in range(8)]
evaluation = train[:4]
quality = Judge(
    "$JUDGE_URL", "judge", rubric="Rate this text from 0 to 9: {completion}", parse=r"\\d", max_tokens=4,
    structured_outputs={"regex": "[0-9]"},
)


def short(completion, example):
    return -len(completion) / 100
"""
CONFIG = """\
run: {{name: judged, output_dir: {output}, export_dtype: none}}
model: {{path: 'esmpi:tiny_countdown', dtype: float32}}
engine: {{num_threads: 1}}
es: {{population_size: 4, generations: 1, sigma: 0.02}}
task: {{name: '{output}/judged.py:quality', rewards: {{quality: 1, short: 0.5}}}}
data: {{train: builtin, eval: builtin, batch_size: 4}}
sampling: {{max_tokens: 12, temperature: 1}}
scoring: {{concurrency: 8, retries: 1, time_limit_s: 60}}
log: {{samples: 4}}
"""


@pytest.fixture
def endpoint(smollm2: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    # what `vllm serve` starts; with the build for CPUs, which has another name, that command does not find itself
    program = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2)
    keys = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8")
    command = [*program, "--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), *keys]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server takes too long to start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.skipif(sweep(1, 0) == 0, reason="the server alone takes half a minute: ESMPI_FULL=1")
def test_a_run_with_a_judge(launch: Run, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_URL", endpoint)
    (tmp_path / "judged.py").write_text(TASK)
    (tmp_path / "judged.yaml").write_text(CONFIG.format(output=tmp_path))
    done = launch(["-m", "esmpi.run", tmp_path / "judged.yaml"], 2)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "failed" not in done.stdout
    run = read(tmp_path / "judged")
    assert np.isfinite(run["members/fitness"]).all()
    kept = [json.loads(line) for text in samples(tmp_path / "judged").values() for line in text.splitlines()]
    kept += [json.loads(line) for line in (tmp_path / "judged/samples/g000000.jsonl").read_text().splitlines()]
    for row in kept:
        assert row["figures"]["quality"] in range(10)
        assert row["reward"] == row["figures"]["quality"] - 0.5 * len(row["completion"]) / 100
