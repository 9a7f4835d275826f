"""Runs with stop strings and penalties: any layout, and what their evaluations and exports hold of it."""

import json
import shutil
from pathlib import Path

import pytest
from support import TINY_RUN, Run, assert_same_run, read, samples, train

from esmpi.__main__ import main
from esmpi.model.find import find_model

KEYS = (
    *("sampling.stop=['</answer>']", "sampling.include_stop=true", "sampling.repetition_penalty=1.05"),
    *("sampling.presence_penalty=0.2", "sampling.min_tokens=5", "es.noise=low_rank", "es.generations=2"),
    *("es.population_size=5", "data.batch_size=6", "data.num_eval=8"),
)


def test_the_layout_changes_nothing(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path / "whole", 1, *KEYS, "engine.wave_size=1")
    halves = ("data.mini_batch_size=4", "es.dispatch=dynamic", "engine.wave_size=3")
    train(launch, tmp_path / "halves", 2, *KEYS, *halves)
    assert_same_run(tmp_path / "halves" / "tiny", tmp_path / "whole" / "tiny")
    said = [json.loads(line) for text in samples(tmp_path / "whole" / "tiny").values() for line in text.splitlines()]
    assert any(one["completion"].endswith("</answer>") for one in said)
    assert not any("</answer>" in one["completion"][:-1] for one in said)
    columns = read(tmp_path / "whole" / "tiny")
    assert (columns["members/fitness"] != columns["members/fitness"][:, :1]).any()


def test_sampled_completions_stop_alike_in_any_layout(launch: Run, tmp_path: Path) -> None:
    keys = (*KEYS, "sampling.temperature=0.8", "sampling.top_k=20", "sampling.min_p=0.02", "eval.temperature=0.5")
    train(launch, tmp_path / "whole", 2, *keys)
    train(launch, tmp_path / "parts", 1, *keys, "data.mini_batch_size=3")
    assert_same_run(tmp_path / "parts" / "tiny", tmp_path / "whole" / "tiny")
    assert main(["export", str(tmp_path / "parts" / "tiny"), "--out", str(tmp_path / "model")]) == 0
    chosen = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    expected = {"temperature": 0.5, "top_k": 20, "min_p": 0.02, "repetition_penalty": 1.05, "min_new_tokens": 5}
    assert expected.items() <= chosen.items()


def test_what_the_tokenizer_cannot_is_refused_at_the_start(launch: Run, tmp_path: Path) -> None:
    stop = ("sampling.stop=['<eos>']", f"run.output_dir={tmp_path}")
    done = launch(["-m", "esmpi.run", TINY_RUN, *stop], 0)
    assert done.returncode == 2
    assert "sampling.stop: '<eos>' contains a special token" in done.stderr + done.stdout


TASK = """
train = evaluation = [{"prompt": "3+4="}, {"prompt": "1+1="}]


def reward(completion, example):
    return float(len(completion))
"""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if not enable_thinking %}<think></think>{% endif %}"


@pytest.mark.parametrize(("thinks", "end"), [("false", "=<think></think>"), ("true", "=")])
def test_variables_of_the_chat_template_are_in_the_prompts(launch: Run, tmp_path: Path, thinks: str, end: str) -> None:
    found = find_model("esmpi:tiny_countdown")
    assert found is not None
    shutil.copytree(found, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    (tmp_path / "task.py").write_text(TASK)
    keys = (
        *(f"model.path={tmp_path}/model", f"task.name={tmp_path}/task.py:reward", "task.chat_format=model"),
        *(f"task.chat_template_kwargs={{enable_thinking: {thinks}}}", "es.generations=0"),
        *("data.train=builtin", "data.eval=builtin", "data.num_train=2", "data.num_eval=2", "data.batch_size=2"),
    )
    train(launch, tmp_path, 0, *keys)
    said = [json.loads(line) for text in samples(tmp_path / "tiny").values() for line in text.splitlines()]
    assert [one["prompt"] for one in said] == [f"3+4{end}", f"1+1{end}"]
