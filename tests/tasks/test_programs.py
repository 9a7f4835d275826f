"""Programs that ask the model: an episode is what they ask and are told."""

from pathlib import Path
from typing import Any

import pytest
from own_tasks import make_environment

from esmpi.tasks import Score

PROGRAM = '''
import asyncio

train = [{"question": "2+2"}, {"question": "3+3"}]
calls = 0


async def solve(client, example, times=2):
    """Ask for drafts, perhaps at the same time, then for the best of them."""
    global calls
    calls += 1
    await asyncio.sleep(0)
    texts = [f"{example['question']}, {i}" for i in range(times)]
    asked = [client.chat.completions.create(model="x", messages=[{"role": "user", "content": text}]) for text in texts]
    texts = [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]
    best = await client.complete([{"role": "user", "content": "Best of " + " and ".join(texts)}])
    if best == "fail":
        raise RuntimeError("as told")
    return {"reward": len(best), "correct": best == texts[0], "drafts": times}


async def silent(client, example):
    return 1.0
'''


def test_a_program_asks_the_model(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    task = make_environment(f"{path}:solve", chat_format="model", params={"times": 2})
    [example, _] = task.problems("train")
    task.check(example)
    calls = task._type.module.calls  # type: ignore[attr-defined]
    said: list[str] = []
    asked = []
    for completion in ("four", "five", "four"):
        [turn] = task.play(example, 0, said)
        assert isinstance(turn, dict)
        asked.append(turn["content"])
        said.append(completion)
    assert asked == ["2+2, 0", "2+2, 1", "Best of four and five"], "each is a conversation of its own"
    assert task.play(example, 0, said) == Score(reward=4.0, correct=True, figures={"turns": 3.0, "drafts": 2.0})
    assert task._type.module.calls == calls + 1, "the program goes on where it was"  # type: ignore[attr-defined]
    assert task.play(example, 0, ["four", "five", "five"]) == Score(
        reward=4.0, correct=False, figures={"turns": 3.0, "drafts": 2.0}
    ), "from its beginning"
    with pytest.raises(RuntimeError, match="as told"):
        task.play(example, 0, ["four", "five", "fail"])
    limited = make_environment(f"{path}:solve", chat_format="model", max_turns=2)
    assert limited.play(example, 0, ["four", "five"]) == Score(reward=0.0, correct=False, figures={"turns": 2.0})
    with pytest.raises(ValueError, match="returned without asking the model"):
        make_environment(f"{path}:silent", chat_format="model").check(example)


CHAINS = """
import asyncio

async def chain(client, name):
    said = ""
    for i in range(3):
        said = await client.complete([{"role": "user", "content": f"{name}{i}{said}"}])
    return said

async def solve(client, example):
    both = await asyncio.gather(chain(client, "a"), chain(client, "b"))
    reply = await client.chat.completions.create(messages=[{"role": "user", "content": " ".join(both)}])
    messages = [{"role": "user", "content": "x"}, reply.choices[0].message]
    await client.complete(messages)
    return 1
"""


def test_what_a_program_asks_depends_on_no_other_episode(tmp_path: Path) -> None:
    path = tmp_path / "chains.py"
    path.write_text(CHAINS, encoding="utf-8")

    def asked(others: int) -> list[Any]:
        task = make_environment(f"{path}:solve", chat_format="model")
        found, said = [], []
        for turn in range(8):
            for number in range(others):
                task.play({"number": number}, 0, [str(i) for i in range(turn)])
            found.append(task.play({"number": -1}, 0, said))
            said.append(f"-{turn}")
        return found

    alone = asked(0)
    assert [turns[-1]["content"][:2] for turns in alone[:6]] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert alone[7] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "-6"}]
    assert asked(5) == alone
