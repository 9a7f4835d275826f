"""configs/paper: the published settings, configs that can start, and a job script for each."""

import re
import subprocess
from pathlib import Path

import pytest
from support import ROOT

from esmpi.config.reader import load_config
from esmpi.launch.dry_run import describe

FOLDER = ROOT / "configs" / "paper"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SCRIPTS = sorted((ROOT / "slurm").glob("es_*.sh"))
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
COUNTDOWN = {
    "qwen2.5_0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5_1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5_3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "llama3.2_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.1_8b": "meta-llama/Llama-3.1-8B-Instruct",
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_is_well_without_a_network(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    config = load_config(path, notes=notes)
    assert notes == []
    assert config.run.name == path.stem
    for source in (config.data.train, config.data.eval, *config.eval.suites.values()):
        if source.endswith(".jsonl"):  # those that the user brings
            Path(source).parent.mkdir(parents=True, exist_ok=True)
            Path(source).touch()
    assert "memory" in describe(config, 8)


@pytest.mark.parametrize("name", COUNTDOWN)
def test_countdown_has_the_published_settings(name: str) -> None:
    config = load_config(FOLDER / f"countdown_{name}.yaml")
    assert config.model.path == COUNTDOWN[name]
    assert (config.es.population_size, config.es.generations) == (30, 500)
    assert (config.es.sigma, config.es.step_size, config.es.shaping) == (1e-3, 5e-4, "zscore")
    assert (config.data.num_train, config.data.batch_size, config.data.order) == (200, 200, "fixed")
    assert (config.data.num_eval, config.sampling.max_tokens, config.sampling.temperature) == (2000, 1024, 0)


@pytest.mark.parametrize(
    ("name", "population_size", "generations", "sigma", "alpha", "batch_size", "max_tokens"),
    [
        ("conciseness", 30, 1000, 1e-3, 5e-4, 2, 100),
        ("math", 30, 336, 1e-3, 5e-4, 1024, 3000),
        ("sudoku", 32, 2500, None, None, None, None),
        ("arc", 50, 1500, None, 3e-4, None, None),
        ("multiplication", 13, 65, 0.05, 0.015, 13, 500),
    ],
)
def test_others_have_the_published_settings(
    name: str,
    population_size: int,
    generations: int,
    sigma: float | None,
    alpha: float | None,
    batch_size: int | None,
    max_tokens: int | None,
) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    assert (config.es.population_size, config.es.generations) == (population_size, generations)
    for value, published in (
        (config.es.sigma, sigma),
        (config.es.step_size, alpha),
        (config.data.batch_size, batch_size),
        (config.sampling.max_tokens, max_tokens),
    ):
        assert published in (None, value)
    assert config.sampling.temperature == (0.7 if name == "multiplication" else 0)
    if name == "multiplication":
        assert (config.es.sigma_per_tensor, config.es.exclude) == ("std", ("*embed_tokens*", "*norm*"))
        assert (config.data.prompts, config.data.num_train) == ("per_member", 13 * 13 * 65)


def test_the_page_has_every_config_and_script() -> None:
    assert len(CONFIGS) == len(COUNTDOWN) + 5
    for path in CONFIGS:
        family, _, size = path.name.rpartition("_")
        assert f"`{path.name}`" in PAGE or (
            f"`{family}_" in PAGE and re.search(rf"`_{size.removesuffix('.yaml')}", PAGE)
        )
    for path in SCRIPTS:
        assert f"`{path.name}`" in PAGE or path.name == "es_eval.sh"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_job_scripts_start_a_config_that_is_there(path: Path) -> None:
    text = path.read_text()
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert path.stat().st_mode & 0o111
    assert f"#SBATCH --job-name={path.stem}\n" in text
    for option in ("requeue", "open-mode=append"):
        assert f"#SBATCH --{option}\n" in text
    if path.name == "es_eval.sh":
        return
    [name] = re.findall(r"^train \"\$\{CONFIG:-([\w./]+)\}\" \"\$@\"$", text, re.MULTILINE)
    config = load_config(ROOT / name)
    # a rank has as many GPUs as its engine needs
    ranks, gpus = (int(re.findall(rf"--{word}=(\d+)", text)[0]) for word in ("ntasks-per-node", "gpus-per-node"))
    assert ranks * config.engine.tensor_parallel_size == gpus  # type: ignore[attr-defined]
