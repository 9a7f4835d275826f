"""Runs whose completions are empty: the first token ends the text, or there is none at all."""

from pathlib import Path

import pytest
from support import Run, read, samples, train

SILENT = Path(__file__).with_name("silent_engine.py")
SMALL = ("es.population_size=3", "es.generations=1", "data.batch_size=4", "data.num_eval=4", "run.export_dtype=none")


@pytest.mark.parametrize(
    ("overrides", "num_tokens"),
    [((f"sampling.stop_token_ids={[*range(266)]}",), 1), ((f"engine.kind={SILENT}:SilentConfig",), 0)],
    ids=["end at once", "no token"],
)
def test_empty_completions_have_their_reward(
    launch: Run, tmp_path: Path, overrides: tuple[str, ...], num_tokens: int
) -> None:
    run = train(launch, tmp_path, 0, *SMALL, "eval.divergence=true", *overrides)
    assert run["members/tokens"].tolist() == [[4 * num_tokens] * 3]
    assert run["members/status"].tolist() == [[0] * 3], "they are no failures"
    assert run["members/fitness"].tolist() == [[0.0] * 3]
    for column, value in {"tokens_mean": num_tokens, "num_truncated": 0, "reward_mean": 0, "kl_per_token": 0}.items():
        assert run[f"evaluations/held_out/{column}"].tolist() == [value] * 2, column
    assert all('"completion": ""' in line for text in samples(tmp_path / "tiny").values() for line in text.splitlines())
    done = launch(["-m", "esmpi", "report", tmp_path / "tiny"], 0)
    assert done.returncode == 0, done.stderr
    assert f"tokens a completion {num_tokens:15.1f}" in done.stdout
    assert read(tmp_path / "tiny")["generations/tokens"].tolist() == [12 * num_tokens]
