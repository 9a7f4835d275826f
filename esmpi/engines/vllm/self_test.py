"""What engine `vllm` checks at its start: that its outputs follow the weights, and the noise in its slots."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

from esmpi.errors import UserError
from esmpi.model.base_model import kinds_of
from esmpi.noise.format import Noise
from esmpi.weights.model_weights import ModelWeights, Perturbation

log = logging.getLogger(__name__)

_SCALE, _STEPS = 0.05, 3


class Tested(Protocol):
    """What is tested of an engine."""

    weights: ModelWeights

    def perturb(self, wave: Sequence[Perturbation]) -> None:
        """Prepare the weights of a wave's members."""

    def complete(self, prompts: list[Any], parameters: Any, slots: Sequence[int | None] = ()) -> list[Any]:
        """Return vLLM's own outputs."""

    def prompt_logprobs(self, prompts: list[list[int]]) -> list[list[float]]:
        """Return the log probability of each token of the prompts."""


class SelfTest:
    """Compares what an engine makes of theta with what it makes of perturbed weights.

    Parameters
    ----------
    engine : Tested
        With its weights open.
    vocabulary : int
        How many tokens its model has.
    """

    def __init__(self, engine: Tested, vocabulary: int):
        self._engine = engine
        vocabulary = min(vocabulary, 1000)
        last = [3 % vocabulary] * _STEPS
        self._prompts = [[(7 * i + 5 * k + 3) % vocabulary for i in range(12 - len(last))] + last for k in range(4)]
        """Four made-up prompts of twelve tokens, the last of which are all the same one."""

    def weights(self) -> None:
        """Make sure that perturbing each kind of weight changes outputs, and that restoring theta restores them.

        The outputs are those of a prompt, read at once, and those of the same tokens generated one by one: an engine
        may use different code for them, and different copies of a weight.

        Raises
        ------
        UserError
            With the tensors whose perturbation changes no output, or only that of prompts; or if outputs depend on what
            else is in the batch by more than rounding, as a member's fitness would then, too.
        """
        weights = self._engine.weights
        kinds = kinds_of(weights.names)
        log.info("vLLM: self-test of %d kinds of weights (engine.self_test=false leaves it out)", len(kinds))
        before, decoded = self.signature(), self._decoded()
        # With several GPUs, the order of a sum may differ from one call to the next.
        tolerance = 4 * max(_difference(before, self.signature()) for _ in range(2))
        # tokens one by one and all at once are rounded differently
        step_tolerance = 4 * _difference(_of_steps(before), decoded)
        alone = [logprob for prompt in self._prompts for logprob in self._signature([prompt])]
        largest = 0.0
        ignored, stale = [], []
        for kind, names in kinds.items():
            weights.perturb([Perturbation(1, _SCALE)], names)
            after, decoded = self.signature(), self._decoded()
            changed = _difference(before, after)
            largest = max(largest, changed)
            if changed <= tolerance:
                ignored.append(kind)
            elif _difference(_of_steps(after), decoded) > max(step_tolerance, changed / 4):
                stale.append(kind)
            weights.restore()
        if ignored:
            raise UserError(
                f"engine: perturbing these weights changes no output of vLLM, so ES would train nothing there: "
                f"{', '.join(ignored)}"
            )
        if stale:
            raise UserError(
                f"engine: vLLM reads prompts with these weights, but generates with a copy that does not follow: "
                f"{', '.join(stale)}: choose engine.kind=hf"
            )
        # on a CPU, rounding makes less than a 50th with bfloat16, and nothing with float32
        if _difference(before, alone) > largest / 8:
            raise UserError(
                "engine: what vLLM makes of a prompt depends on the other prompts of its batch, so a member's fitness "
                "would, too: choose engine.kind=hf"
            )
        if _difference(before, self.signature()) > tolerance:
            raise UserError("engine: writing theta back does not give vLLM's first outputs again")

    def slots(self, noise: Noise, num_slots: int, quantized: bool) -> None:
        """Make sure that a member in a slot makes the outputs that it makes with its noise written into the weights.

        Noise that is written into `quantized` weights of 4 bits is quantized, too, and cannot be compared so. Then the
        member of the first slot must make the same outputs in the last one.

        Raises
        ------
        UserError
            If it does not.
        """
        # of whatever scale the noise of a tensor is, it must be large enough to tell outputs apart
        largest = max(noise.scales.values()) if noise.scales else 1.0
        scale = _SCALE / largest
        member, other = Perturbation(1, scale, noise), Perturbation(2, scale, noise)
        theta = self._next_logprobs(None, num_slots)
        if quantized:
            self._engine.perturb([member, *[other] * (num_slots - 1)])
            expected = self._next_logprobs(0, num_slots)
            if _difference(expected, theta) == 0:
                raise UserError("engine: noise in vLLM's slots for adapters changes no output: set engine.kind=hf")
        else:
            self._engine.weights.perturb([member])
            expected = self._next_logprobs(None, num_slots)
        for slot in sorted({0, num_slots - 1}):
            self._engine.perturb([*[other] * slot, member, *[other] * (num_slots - slot - 1)])
            # two ways to round a sum are far less apart than two members
            if not _difference(expected, self._next_logprobs(slot, num_slots)) < _difference(expected, theta) / 4:
                raise UserError(
                    "engine: noise in vLLM's slots for adapters makes other outputs than noise in the weights: set "
                    "engine.wave_size=1 to evaluate members one at a time, and report this"
                )
        if not _difference(theta, self._next_logprobs(None, num_slots)) < _difference(expected, theta) / 4:
            raise UserError("engine: requests without a slot get the noise of one: set engine.wave_size=1")

    def _next_logprobs(self, slot: int | None, num_slots: int) -> list[float]:
        """Return the log probability of a certain token after some made-up prompts.

        With a slot, the same prompts of another slot are in the batch, too, and in between.
        """
        from vllm import SamplingParams

        prompts = self._prompts
        other = None if slot is None else (slot + 1) % num_slots
        parameters = SamplingParams(
            max_tokens=1, temperature=0, logprobs=0, detokenize=False, allowed_token_ids=[prompts[0][0]]
        )
        outputs = self._engine.complete(
            [{"prompt_token_ids": tokens} for tokens in prompts for _ in range(2)],
            parameters,
            [other, slot] * len(prompts),
        )
        return [output.outputs[0].logprobs[0][prompts[0][0]].logprob for output in outputs[1::2]]

    def signature(self) -> list[float]:
        """Return the log probability of each token of the made-up prompts but the first."""
        return self._signature(self._prompts)

    def _signature(self, prompts: list[list[int]]) -> list[float]:
        found = self._engine.prompt_logprobs(prompts)
        return [logprob for prompt in found for logprob in prompt[1:]]

    def _decoded(self) -> list[float]:
        """Return the log probability of the last tokens of the made-up prompts, which are generated one by one."""
        from vllm import SamplingParams

        token, starts = self._prompts[0][-1], [prompt[:-_STEPS] for prompt in self._prompts]
        parameters = SamplingParams(
            max_tokens=_STEPS,
            temperature=0,
            logprobs=0,
            detokenize=False,
            allowed_token_ids=[token],
            ignore_eos=True,
        )
        outputs = self._engine.complete([{"prompt_token_ids": tokens} for tokens in starts], parameters)
        return [step[token].logprob for output in outputs for step in output.outputs[0].logprobs]


def _of_steps(signature: Sequence[float]) -> list[float]:
    """Return the part of a signature that `_decoded` returns."""
    each = len(signature) // 4
    return [signature[i] for i in range(len(signature)) if i % each >= each - _STEPS]


def _difference(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the largest difference of two signatures, infinity if there is no number to compare."""
    differences = [abs(old - new) for old, new in zip(before, after, strict=True)]
    return math.inf if any(map(math.isnan, differences)) else max(differences)
