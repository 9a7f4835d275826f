"""The reward model: its scores are those of the model in transformers."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from esmpi.config.problems import ScoringConfig
from esmpi.errors import UserError
from esmpi.model.find import find_model
from esmpi.rewards import RewardModel
from esmpi.scoring import Scorer
from esmpi.tasks import Sample, make_task
from esmpi.tasks.python import PythonTaskConfig

FILE = """\
from esmpi.rewards import RewardModel

liked = RewardModel({path!r}, batch_size=2)
"""


@pytest.fixture
def folder(reward_model: Path) -> Path:
    return reward_model


PROMPTS = ["1+2", "You are", "3"]
COMPLETIONS = ["=3", " 17 and 4", "-3=0, of course"]


def expected(folder: Path) -> list[float]:
    """The score of each text alone, so without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    inputs = [tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
    with torch.inference_mode():
        return [float(model(input_ids=one["input_ids"]).logits[0, 0]) for one in inputs]


def test_scores_are_those_of_the_model(folder: Path) -> None:
    known = expected(folder)
    assert len({round(value, 3) for value in known}) == 3
    for size in (1, 2, 8):
        assert RewardModel(str(folder), batch_size=size)(PROMPTS, COMPLETIONS) == pytest.approx(known, abs=1e-4)
    cut = RewardModel(str(folder), max_length=3)(PROMPTS, COMPLETIONS)
    assert cut == pytest.approx(
        RewardModel(str(folder))([text[:3] for text in ("1+2", "You", "3-3")], [""] * 3), abs=1e-4
    )


def test_as_a_reward_of_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FILE.format(path=str(folder)))
    config = PythonTaskConfig(name=f"{tmp_path}/own.py:liked")
    task = make_task(config)
    assert (task.scope, task.is_async, task.needs_tokens) == ("batch", False, False)
    # loading takes longer than the limit of a completion, which does not count that
    settings = ScoringConfig(time_limit_s=2)
    scorer = Scorer(partial(make_task, config, task.source), settings, scope=task.scope)
    pairs = zip(PROMPTS, COMPLETIONS, strict=True)
    samples = [Sample(completion=completion, example={"prompt": prompt}) for prompt, completion in pairs]
    scored = scorer.submit(samples).result(timeout=120)
    scorer.close()
    assert scored.error is None
    assert [one.reward for one in scored.scores] == pytest.approx(expected(folder), abs=1e-4)


def test_what_is_no_reward_model_is_told(tmp_path: Path) -> None:
    base = find_model("esmpi:tiny_countdown")
    with pytest.raises(
        UserError, match=r"reward_model: .*tiny_countdown is no reward model: it lacks the weights score"
    ):
        RewardModel(str(base)).prepare()
    with pytest.raises(UserError, match=r"reward_model: /none/such cannot be loaded: .*/none/such"):
        RewardModel("/none/such").prepare()
    with pytest.raises(UserError, match="reward_model: dtype: torch has no type 'float99'"):
        RewardModel(str(base), dtype="float99").prepare()
    with pytest.raises(UserError, match="reward_model: num_labels: a reward model has one label"):
        RewardModel(str(base), num_labels=2)
    # as a run says it, in one line
    (tmp_path / "own.py").write_text(FILE.format(path=str(base)))
    config = PythonTaskConfig(name=f"{tmp_path}/own.py:liked")
    task = make_task(config)
    scorer = Scorer(partial(make_task, config, task.source), ScoringConfig(), scope=task.scope)
    own = [Sample(completion="1", example={"prompt": "1"})]
    with pytest.raises(UserError, match=r"^a process for rewards cannot start: reward_model: .* is no reward model"):
        scorer.submit(own).result(timeout=120)
    scorer.close()
