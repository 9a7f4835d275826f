"""Identity: keys that an older esmpi did not have count as their defaults, in digests as in comparisons."""

import pytest
from support import TINY_RUN

from esmpi.config.differences import differences
from esmpi.config.problems import HELD_OUT
from esmpi.config.reader import load_config
from esmpi.identity import Digests, digest_of, digest_of_kind

DIGESTS = Digests(data="d", suites={HELD_OUT: "s"}, task="t")
OLD_SAMPLING = {"max_tokens": 40, "temperature": 0.0, "top_p": 1.0}


def test_results_of_an_older_esmpi_are_still_of_the_same_kind() -> None:
    config = load_config(TINY_RUN)
    tree = config.to_dict()
    settings = {
        **{"task": tree["task"], "sampling": OLD_SAMPLING, "run": {"seed": 0}},
        **{"eval": {"num_samples": 1, "temperature": 0.0}, "scoring": {"failure_reward": 0.0}},
    }
    assert digest_of_kind(config, DIGESTS) == digest_of(["s", "t", None, settings])
    assert list(differences(tree | {"sampling": OLD_SAMPLING}, tree)) == []


@pytest.mark.parametrize(
    "override",
    [
        *("sampling.stop=[x]", "sampling.stop_token_ids=[3]", "sampling.min_tokens=1", "sampling.bad_words=[x]"),
        *("sampling.repetition_penalty=1.1", "sampling.presence_penalty=0.1", "sampling.frequency_penalty=0.1"),
    ],
)
def test_another_sampling_makes_another_kind_of_results_and_another_run(override: str) -> None:
    config, other = load_config(TINY_RUN), load_config(TINY_RUN, [override])
    assert digest_of_kind(other, DIGESTS) != digest_of_kind(config, DIGESTS)
    [found] = differences(config.to_dict() | {"sampling": OLD_SAMPLING}, other.to_dict())
    assert found.matters


def test_variables_of_a_chat_template_make_another_kind_of_results() -> None:
    chat = ["task.name=gsm8k", "task.chat_format=model"]
    config = load_config(TINY_RUN, chat)
    other = load_config(TINY_RUN, [*chat, "task.chat_template_kwargs={enable_thinking: false}"])
    assert digest_of_kind(other, DIGESTS) != digest_of_kind(config, DIGESTS)
    old = config.to_dict()
    del old["task"]["chat_template_kwargs"]
    assert list(differences(old, config.to_dict())) == []
    assert [one.key for one in differences(old, other.to_dict())] == ["chat_template_kwargs"]
