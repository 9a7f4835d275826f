"""Wordle: find a word of five letters by guesses, each of which is answered by what is right in it."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from esmpi.data.problem import Example
from esmpi.tasks.answers import last_tagged
from esmpi.tasks.environments.base import Answer, Environment

if TYPE_CHECKING:
    import numpy as np

_RULES = (
    "Find a secret English word of five letters in {num_guesses} guesses. After each guess you see a sign for every "
    "letter: + is right and in its place, ? is in the word but in another place, - is not in the word. Think, then "
    "write your guess between <answer> and </answer>.\n"
)
_TEXT = """
about above actor adult after again agent agree ahead alarm album alone along angel anger angle apple apply
arena armor arrow asset audio avoid award bacon badge baker basic beach beard berry birth black blade blame blank
blind block blood board boost booth bound brain brand brave bread break brick bride brief bring brown brush build
cabin cable candy cargo carry catch cause chain chair chalk charm chart chase cheap check chess chest chief child
choir civil claim class clean clear climb clock cloud coach coast coral count court cover crack craft crane crash
cream crime crowd crown curve cycle dance delay depth diary dough draft drain drama dream dress drift drink drive
eager eagle early earth elbow elder empty enemy enjoy enter entry equal error event exact exist extra fable faith
false favor feast fence fever field fifth fight final flame flash fleet flesh float flood floor flour fluid focus
force forge forum found frame fresh front frost fruit giant glass globe glory grace grade grain grand grant grape
graph grass great green greet group guard guest guide habit happy heart heavy hinge honey honor horse hotel house
human humor ideal image index inner input ivory jelly jewel joint judge juice knife label labor large laser laugh
layer learn lemon level light limit linen liver local logic loyal lucky lunch magic major maple march match mayor
medal melon mercy merit metal meter minor model money month moral motor mount mouse mouth movie music nerve night
noble noise north novel nurse ocean offer olive onion opera orbit order organ other outer owner paint panel paper
party pasta patch peace pearl phase phone photo piano piece pilot pitch place plain plane plant plate point porch
pound power press price pride print prize proof proud queen quest quick quiet quote radar radio raise ranch range
rapid ratio reach ready realm refer relax reply rider ridge right river roast robin robot rough round route royal
ruler rural salad sauce scale scene scent scope score scout shade shape share sharp sheep sheet shelf shell shift
shine shirt shock shore short shout sight skill sleep slice slide slope small smart smile smoke snake solar solid
sound south space spare spark speak speed spell spice spoon sport staff stage stair stamp stand start state steam
steel stick stone store storm story stove straw strip study style sugar sunny swamp sweet swing sword table taste
teach thank theme thick think thorn throw thumb tiger title toast token tooth topic torch total touch tower trace
track trade trail train treat trend trial tribe trick truck trust truth tulip uncle under union unity upper urban
usage value vapor video visit vital voice wagon waste watch water whale wheat wheel white whole woman world worth
wound wrist yield young youth zebra
"""
WORDS = tuple(_TEXT.split())


class Wordle(Environment):
    """Examples have `word`. The reward is 1 for the word, else a tenth of the letters in place in the best guess."""

    def __init__(self, num_guesses: int = 6):
        if not (isinstance(num_guesses, int) and num_guesses > 0):
            raise ValueError(f"num_guesses must be an integer from 1 on, got {num_guesses!r}")
        self._num_guesses = num_guesses

    def reset(self, example: Example, seed: int) -> str:
        self._word: str = example["word"]
        self._left, self._in_place = self._num_guesses, 0
        return _RULES.format(num_guesses=self._num_guesses)

    def step(self, completion: str) -> Answer:
        guess = (last_tagged(completion) or "").lower()
        self._left -= 1
        if guess == self._word:
            return {"reward": 1.0, "correct": True, "guesses": self._num_guesses - self._left}
        is_word = re.fullmatch("[a-z]{5}", guess) is not None
        signs = compare(guess, self._word) if is_word else ""
        self._in_place = max(self._in_place, signs.count("+"))
        if self._left == 0:
            return self.finish()
        said = f"{guess} {signs}" if is_word else "That was no word of five letters between <answer> and </answer>."
        return f"{said}\n{self._left} left."

    def finish(self) -> dict[str, Any]:
        return {
            "reward": self._in_place / 10,
            "correct": False,
            "guesses": self._num_guesses - self._left,
        }

    def check(self, example: Example) -> None:
        word = example.get("word")
        if not isinstance(word, str) or not re.fullmatch("[a-z]{5}", word):
            raise ValueError(f"`word` must have five small letters, got {reprlib.repr(word)}")

    def key(self, example: Example) -> Hashable:
        return example["word"]

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        return lambda: {"word": WORDS[rng.integers(len(WORDS))]}


def compare(guess: str, word: str) -> str:
    """Return a sign for each letter of a guess: + in place, ? elsewhere, - not there (or no more often than marked)."""
    left = Counter(letter for letter, said in zip(word, guess, strict=True) if letter != said)
    signs = ""
    for letter, said in zip(word, guess, strict=True):
        if letter == said:
            signs += "+"
        elif left[said] > 0:
            left[said] -= 1
            signs += "?"
        else:
            signs += "-"
    return signs
