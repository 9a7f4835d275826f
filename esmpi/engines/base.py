"""What an engine is: live weights that can be perturbed, and text made with them. Engines know no tasks.

An engine is one module or package of `esmpi.engines`, a class in a user's file, or an installed package's entry point.
It consists of two classes: a config, with the engine's own keys, that opens the engine; and the engine. Importing the
module must be cheap: what an engine computes with is imported when it is opened.
"""

import importlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.config.problems import SamplingConfig
from esmpi.config.sections import Config, EngineSection, ModelConfig
from esmpi.errors import UserError, said
from esmpi.weights.placement import size
from esmpi.wording import counted

if TYPE_CHECKING:
    from esmpi.model.base_model import BaseModel
    from esmpi.mpi.comm import Place
    from esmpi.noise.format import Noise
    from esmpi.weights.model_weights import ModelWeights, Perturbation


@dataclass(frozen=True, kw_only=True)
class EngineConfig(EngineSection):
    """The `engine` section of the config with an engine's own keys. An engine subclasses it.

    `kind` is the engine's name and needs a default. A key that changes no result says so, with
    `esmpi.config.keys.key(..., changes_result="no")`.
    """

    engine: ClassVar["type[Engine] | str"]
    """The engine: a class, or its location, `module:Class`, from which it is imported when it is opened. It is called
    with the model's section of the config, this section, the base model, and the place where this rank runs."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Installed packages that the engine computes with: the run file and `esmpi doctor` state their versions."""

    environment: ClassVar[Mapping[str, str]] = {}
    """Environment variables that libraries read when they are imported; the user's own values take precedence."""

    @property
    def gpus_per_rank(self) -> int:
        """Return how many GPUs the engine of a rank uses, if there are any."""
        return 1

    def prepare(self) -> None:
        """Set the environment variables that libraries read when they are loaded. Called before MPI starts."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)

    def open(self, model: ModelConfig, base: "BaseModel", place: "Place", waves: "Waves | None" = None) -> "Engine":
        """Load the model into the engine on this rank.

        `waves` says which members it will evaluate, None if none: for engines that must know it before they load.

        Raises
        ------
        UserError
            If the engine is not installed, or cannot perturb all weights of this model.
        """
        engine: Engine = self._engine_type()(model, self, base, place)
        return engine

    def _engine_type(self) -> Any:
        opened: Any = self.engine
        if isinstance(opened, str):
            module, _, name = opened.partition(":")
            try:
                opened = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"engine.kind: {self.kind}: {module}:{name} cannot be imported: {said(error)}"
                ) from error
        if missing := sorted(getattr(opened, "__abstractmethods__", ())):
            raise UserError(f"engine.kind: {opened.__qualname__} lacks what every engine has: {', '.join(missing)}")
        return opened

    def plan(self, config: Config, base: "BaseModel") -> list[str]:
        """Return what a dry run says of the memory that a rank needs; loads nothing."""
        return [memory_line(config, base)]

    def missing(self) -> list[str]:
        """Return what this machine lacks for the engine, each with what to do: for `esmpi doctor`."""
        return []


@dataclass(frozen=True, kw_only=True)
class Waves:
    """What an engine will be asked to evaluate at once."""

    noise: "Noise"
    num_prompts: int
    """Prompts that each member completes at once; each sample of a prompt counts."""
    num_members: int
    """Most members of this rank in a generation."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the model said after one prompt."""

    text: str
    num_tokens: int
    """New tokens, the end-of-text token included."""
    truncated: bool
    """Whether `max_tokens` cut it off."""
    tokens: tuple[int, ...] = ()
    """The new tokens, also those whose text is cut off at a stop string."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and what ends a completion. All of it means what it means in vLLM.

    Scores, which are float32, are changed in this order: bad words and `min_tokens`; the penalties for repetition, for
    frequency and for presence; the temperature; `min_p`; `top_k`; `top_p`, of what is left. The first ones count in
    greedy decoding, too.
    """

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is all tokens. Tokens as probable as the last of them are kept, too."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """For tokens of the prompt and of the completion."""
    presence_penalty: float = 0.0
    """For tokens of the completion."""
    frequency_penalty: float = 0.0
    """For tokens of the completion."""
    min_tokens: int = 0
    """The end-of-text token may be the one after these at the earliest, and a stop string may end in it."""
    bad_words: tuple[str, ...] = ()
    """Each is forbidden in two forms: as it is, and after a blank if it then has other, but as many tokens."""
    stop: tuple[str, ...] = ()
    """The one that ends first counts, wherever in a token it ends."""
    include_stop: bool = False
    """Whether the text includes the stop string that ended it. All tokens count in any case."""
    stop_token_ids: tuple[int, ...] = ()
    """These are end-of-text tokens, besides the model's own."""

    @classmethod
    def at(cls, temperature: float, config: SamplingConfig) -> "Sampling":
        """Return the sampling of a config, at a temperature that need not be the config's."""
        keys = {field.name: getattr(config, field.name) for field in fields(cls)} | {"temperature": temperature}
        if temperature == 0:
            keys |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        return cls(**keys)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to complete."""

    prompt: str
    seed: int = 0
    """For a temperature above 0: the same requests give the same completions. 0 to 2^63 - 1."""
    member: int | None = None
    """Whose weights complete it: a place in the wave that `Engine.perturb` prepared; None for the live weights."""


class Engine(ABC):
    """A model whose weights ES may change, with theta behind them, and the text that it makes."""

    weights: "ModelWeights"
    """Theta and the live weights."""
    tokenizer: Any
    """The model's tokenizer, as transformers has it. An engine without one overrides `render` and `prompt_lengths`, and
    evaluates no suites of lm-evaluation-harness."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """Tokens of a prompt and its completion that the model has room for, None if it has no limit."""

    def gpus(self) -> list[str]:
        """Return the UUIDs of the GPUs that this rank's engine uses; empty on a CPU."""
        return []

    def wave_size(self, requests: Sequence[Request], sampling: Sampling, noise: "Noise") -> int:
        """Return how many members this engine best evaluates at once.

        Parameters
        ----------
        requests : sequence of Request
            What each member completes in a batch.
        sampling : Sampling
        noise : Noise
        """
        return 1

    def perturb(self, wave: "Sequence[Perturbation]") -> None:
        """Prepare the weights of a wave's members. A request completes with those of the member that it names.

        An engine whose `wave_size` is 1 need not override this: the live weights become those of the only member.
        """
        self.weights.perturb(wave)

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Complete each request; the completions come in the requests' order."""

    @abstractmethod
    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        """Return the natural logarithm of the probability that the live weights give each token of the completions.

        The distribution is the model's own, at temperature 1, however the completions were sampled. Tokens that do
        not fit into the model's length are left out at the end.
        """

    def check(self, sampling: Sampling) -> None:
        """Raise UserError for a sampling that this engine cannot do, or that means nothing for its model's tokens."""
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is not None:
            check_tokens(tokenizer, sampling)

    def render(self, prompt: str | list[dict[str, str]], /, **variables: Any) -> str:
        """Return the text of a prompt; messages go through the model's chat template, which may read `variables`."""
        return prompt if isinstance(prompt, str) else render_chat(self.tokenizer, prompt, variables)

    def has_template_for(self, variable: str) -> bool:
        """Return whether the model's chat template reads a variable."""
        return _reads(getattr(getattr(self, "tokenizer", None), "chat_template", None), variable)

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has."""
        return [len(ids) for ids in self.tokenizer(list(prompts))["input_ids"]]


def require_unquantized(base: "BaseModel", quantization: object = None) -> None:
    """Raise UserError if a model is quantized, or if `quantization` asks the engine to quantize it."""
    if "quantization_config" in base.config:
        raise UserError(f"model.path: {base.folder} is quantized: ES needs unquantized weights")
    if quantization is not None:
        raise UserError(
            f"engine.vllm_args: quantization: {quantization}: ES cannot write weights in vLLM's own formats: set "
            f"model.quantization=int8, fp8 or int4, with which esmpi quantizes the weights itself"
        )


def require_numbers(logprobs: Iterable[float], model: ModelConfig, base: "BaseModel") -> None:
    """Raise UserError if log probabilities of the base model are not numbers: no reward could tell members apart."""
    if any(map(math.isnan, logprobs)):
        why = {
            "float32": "its weights are damaged, or too large",
            "bfloat16": "its weights are damaged, or too large: try model.dtype=float32",
            "float16": "its weights or activations are too large for that: set model.dtype=float32",
        }[model.dtype]
        raise UserError(f"model.path: the outputs of {base.folder} in {model.dtype} are not numbers (NaN): {why}")


def memory_line(config: Config, base: "BaseModel") -> str:
    """Return a line on the memory that the weights take."""
    from esmpi.model.quantization import live_bytes  # loads NumPy, which reading a config need not

    theta, live = 4 * base.num_weights, live_bytes(config.model, base)
    quantized = "" if config.model.quantization == "none" else f" ({config.model.quantization})"
    shared = " for all ranks of its node" if config.engine.share_theta else ""
    return (
        f"memory          {base.num_weights:,} weights; each rank: theta {size(theta)}{shared} + live weights "
        f"{size(live)}{quantized}"
    )


def factor_elements(base: "BaseModel", noise: "Noise") -> int:
    """Return how many elements the two factors of low-rank noise have, over all matrices of a member."""
    return noise.rank * sum(sum(t.shape) for name, t in base.tensors.items() if noise.scale(name, t.shape))


def planned_noise(config: Config, base: "BaseModel") -> "Noise":
    """Return which matrices of a model have noise, and its rank; no values of the model are read."""
    from esmpi.model.noise_settings import NoiseSettings  # loads NumPy, which reading a config need not

    return replace(NoiseSettings.of(asdict(config.es)), sigma_per_tensor="none").noise(base)


def factor_line(config: Config, base: "BaseModel", noise: "Noise", on_cpu: int, on_gpu: int) -> str:
    """Return a line on how many members are evaluated at once, and on the memory that the noise of each takes."""
    on_cpu, on_gpu = (min(members, config.es.population_size) for members in (on_cpu, on_gpu))
    members = counted(on_cpu, "member") + (
        "" if on_gpu == on_cpu else f" on a CPU, {on_gpu} on a GPU with room for them"
    )
    memory = size(factor_elements(base, noise) * config.model.bytes_per_weight)
    return f"waves           at most {members}; the noise of each takes {memory}"


def check_tokens(tokenizer: Any, sampling: Sampling) -> None:
    """Raise UserError for a key of the sampling that has no effect with a tokenizer of transformers, naming it."""
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        for text in sampling.stop:
            if token.special and token.content in text:
                raise UserError(
                    f"sampling.stop: {text!r} contains a special token, which is not part of a completion's text: to "
                    f"stop at {token.content}, set sampling.stop_token_ids=[{token_id}]"
                )
    for token_id in sampling.stop_token_ids:
        if not 0 <= token_id < len(tokenizer):
            raise UserError(f"sampling.stop_token_ids: this model has tokens 0 to {len(tokenizer) - 1}, not {token_id}")
    for word in sampling.bad_words:
        if not tokenizer.encode(word.lstrip(), add_special_tokens=False):
            raise UserError(f"sampling.bad_words: this model has no tokens for {word!r}")


def render_chat(tokenizer: Any, messages: list[dict[str, str]], variables: Mapping[str, Any] | None = None) -> str:
    """Return messages as text by a tokenizer's chat template, without what the tokenizer itself puts in front.

    `variables` are further ones for the template.

    Raises
    ------
    UserError
        If the model has no chat template, or one that refuses these messages or does not read a variable.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "task.chat_format: this model has no chat template: set task.chat_format=none, or to another form"
        )
    variables = variables or {}
    for name in variables:
        if not _reads(tokenizer.chat_template, name):
            raise UserError(f"task.chat_template_kwargs: the model's chat template does not read {name}: remove it")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))
    except Exception as error:  # a template is the model's own program: it may refuse a system turn, an order, ...
        raise UserError(f"task.chat_format: the model's chat template refuses a prompt: {said(error)}") from error
    first = tokenizer.bos_token
    adds_it = first is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(first) if adds_it else text


def _reads(template: Any, variable: str) -> bool:
    return re.search(rf"\b{re.escape(variable)}\b", str(template)) is not None
