"""Engine `hf`: transformers' own generation, on the CPU or one GPU."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.utils.logging import disable_progress_bar

from esmpi.config.sections import ModelConfig
from esmpi.engines.base import Completion, Engine, Request, Sampling, require_unquantized
from esmpi.engines.hf import ROWS_ON_CPU, ROWS_ON_GPU, HfConfig
from esmpi.engines.hf.adapters import Adapters
from esmpi.engines.hf.processors import processors
from esmpi.engines.hf.quantized import quantize_layers
from esmpi.engines.hf.stop import StopStrings
from esmpi.engines.hf.views import find_views
from esmpi.errors import UserError, said
from esmpi.model.base_model import BaseModel, kinds_of
from esmpi.model.quantization import quantized_names, require_noise_in_outputs
from esmpi.mpi.comm import Place
from esmpi.noise.format import Noise, is_matrix
from esmpi.weights.model_weights import ModelWeights, Perturbation
from esmpi.weights.open import open_weights
from esmpi.weights.placement import Placement, choose_placement
from esmpi.weights.shard import WeightShard, call_here
from esmpi.weights.views import View

log = logging.getLogger(__name__)

_WAVE_SHARE = 0.5
"""Share of the free memory that a wave's keys, values, logits and noise may take."""


class HfEngine(Engine):
    """A causal language model of transformers.

    Raises
    ------
    UserError
        If the model is quantized, or a parameter does not hold values of the checkpoint as they are stored: ES would
        then perturb something else than the model.
    """

    def __init__(self, model: ModelConfig, engine: HfConfig, base: BaseModel, place: Place):
        num_threads = engine.num_threads or len(place.cores)
        torch.set_num_threads(num_threads)
        disable_progress_bar()
        self._device = _device(engine.device, place.local_rank)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        require_unquantized(base)
        self.tokenizer, self._model = _load(model, base)
        self._model.eval().requires_grad_(False)
        head = self._model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_contiguous)
        if model.quantization != "none":
            self._quantize(model, base)
        self._model.to(self._device)

        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        if ends is None:
            raise UserError(f"model.path: {base.folder} names no end-of-text token (eos_token_id)")
        self._ends = ends if isinstance(ends, list) else [ends]
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = self._ends[0]
        # A model may bring its own defaults (temperature, repetition penalty, ...): a run's sampling is what
        # its config says and nothing else.
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._ends, pad_token_id=self.tokenizer.pad_token_id
        )

        found = find_views(self._model, base)
        views = found.views
        canonical = list(dict.fromkeys(view.name for view in views))
        aliases = base.tied_to(canonical)
        unused = sorted(base.tensors.keys() - set(canonical) - aliases.keys())
        if unused:
            names = ", ".join(kinds_of(unused))
            log.warning("the model does not use these tensors of its checkpoint; they stay as they are: %s", names)
        placement = self._place_theta(engine.theta_placement, views)
        weights = open_weights(views, lambda view: _read(base, view), num_threads, placement, memory=place.memory)
        self.weights = ModelWeights(base, call_here(WeightShard(weights, base)), aliases)
        self._wave_size = engine.wave_size
        self._noise_in_outputs = model.quantization == "int4"
        self._num_local_ranks = place.num_local_ranks
        matrices = {name for name in canonical if is_matrix(base.tensors[name].shape)}
        single = {key: name for key, name in found.names.items() if name in matrices}
        self._adapters = Adapters(self._model, single, matrices)
        self._wave: Sequence[Perturbation] = ()
        self._told = False

    def _quantize(self, model: ModelConfig, base: BaseModel) -> None:
        """Put quantized layers in place of the model's, once their weights are seen to be the checkpoint's."""
        found = find_views(self._model, base)
        wanted = quantized_names(model, base).intersection(view.name for view in found.views)
        for view in found.views:
            if view.name in wanted:
                _read(base, view)
        quantize_layers(self._model, found.names, wanted, model.quantization)

    def _place_theta(self, wanted: str, views: list[View]) -> Placement:
        if self._device.type == "cpu":
            return "host+bf16" if wanted == "host+bf16" else "host"  # on a CPU all placements are the same memory
        held = [tensor for view in views for tensor in (view.live, view.scales) if tensor is not None]
        live, theta = sum(tensor.nbytes for tensor in held), 4 * sum(view.num_elements for view in views)
        free, _ = torch.cuda.mem_get_info(self._device)
        placement, why = choose_placement(wanted, theta, live, free + live)
        log.info("%s", why)
        return placement

    @property
    def max_length(self) -> int | None:
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def gpus(self) -> list[str]:
        return [] if self._device.type == "cpu" else [str(torch.cuda.get_device_properties(self._device).uuid)]

    def check(self, sampling: Sampling) -> None:
        super().check(sampling)
        if sampling.stop and not self.tokenizer.is_fast:
            raise UserError(
                "sampling.stop: engine hf needs a fast tokenizer, which this model lacks: set engine.kind=vllm"
            )

    def wave_size(self, requests: Sequence[Request], sampling: Sampling, noise: Noise) -> int:
        takes_waves, unreached = self._takes_waves(noise), self._adapters.unreached(noise)
        if noise.rank and self._wave_size != 1 and unreached and not self._told:
            self._told = True
            log.warning(
                "noise can be added to the outputs of linear layers and embeddings only, so members are evaluated one "
                "at a time: %s",
                ", ".join(kinds_of(unreached)),
            )
        if not takes_waves:
            return 1
        if self._wave_size is not None:
            return self._wave_size
        rows = ROWS_ON_GPU if self._device.type == "cuda" else ROWS_ON_CPU
        num_tokens = max(self.prompt_lengths([request.prompt for request in requests])) + sampling.max_tokens
        # logits, the counts of tokens that penalties need, and what sampling sorts and sums in float64
        penalties = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        each = 8 + (16 if penalties else 0) + (40 if sampling.temperature > 0 else 0)
        row = num_tokens * self._bytes_per_token() + len(self.tokenizer) * each
        member = len(requests) * row + self._adapters.bytes_per_member(noise)
        return max(1, min(rows // len(requests), int(_WAVE_SHARE * self._free_memory()) // member))

    def _free_memory(self) -> int:
        """Return the bytes that this process may still take."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            # what PyTorch keeps of earlier waves is free, too
            return int(free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // self._num_local_ranks

    def perturb(self, wave: Sequence[Perturbation]) -> None:
        if self._takes_waves(wave[0].noise):
            self.weights.restore()
            self._adapters.prepare(wave)
            self._wave = wave
        else:
            self.weights.perturb(wave)
            self._wave = ()

    def _takes_waves(self, noise: Noise) -> bool:
        unreached = self._adapters.unreached(noise)
        if self._noise_in_outputs:
            require_noise_in_outputs(noise, unreached)
            return True
        return noise.rank > 0 and self._wave_size != 1 and not unreached

    def _bytes_per_token(self) -> int:
        """Return what the keys and values of a token take."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
        if not heads:
            return 0  # a model without attention keeps nothing for each token
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * head_size * self._model.dtype.itemsize)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        if not self._wave or not requests or requests[0].member is None:
            return self._generate(requests, sampling)
        places = by_member([request.member for request in requests], len(self._wave))
        with self._adapters.applied(len(places)):
            made = self._generate([requests[max(0, place)] for place in places], sampling)
        found = {place: completion for place, completion in zip(places, made, strict=True) if place >= 0}
        return [found[place] for place in range(len(requests))]

    def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Complete each request with the model as it is."""
        if not requests:
            return []
        inputs = self.tokenizer([request.prompt for request in requests], return_tensors="pt", padding=True)
        # Some tokenizers also return token_type_ids, which decoder models refuse.
        inputs = {key: inputs[key].to(self._device) for key in ("input_ids", "attention_mask")}
        prompt_length = inputs["input_ids"].shape[1]
        ends = [*self._ends, *sampling.stop_token_ids]
        generation = GenerationConfig(
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
        )
        stops = StopStrings(self.tokenizer, sampling, ends, len(requests), prompt_length) if sampling.stop else None
        output = self._model.generate(
            **inputs,
            generation_config=generation,
            logits_processor=LogitsProcessorList(
                processors(requests, sampling, inputs["attention_mask"], ends, self.tokenizer)
            ),
            stopping_criteria=StoppingCriteriaList([] if stops is None else [stops]),
        )
        stopped = {} if stops is None else stops.stopped
        return [
            self._completion(tokens, ends, stopped.get(row))
            for row, tokens in enumerate(output[:, prompt_length:].tolist())
        ]

    def _completion(self, tokens: list[int], ends: Sequence[int], stopped: tuple[int, str] | None) -> Completion:
        """Return the completion of a row; `stopped` says how many tokens and which text a stop string has left."""
        if stopped is not None:
            num_tokens, text = stopped
            return Completion(text=text, num_tokens=num_tokens, truncated=False, tokens=tuple(tokens[:num_tokens]))
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        num_tokens = len(tokens) if end is None else end + 1
        return Completion(text=text, num_tokens=num_tokens, truncated=end is None, tokens=tuple(tokens[:num_tokens]))

    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        found = []
        # one after another: a whole batch's scores take the size of the vocabulary times the number of its tokens
        for prompt, completion in zip(prompts, completions, strict=True):
            before = self.tokenizer(prompt)["input_ids"]
            tokens = torch.tensor([[*before, *completion.tokens]], device=self._device)
            with torch.inference_mode():
                scores = self._model(tokens[:, :-1]).logits[0, len(before) - 1 :]
            chosen = tokens[0, len(before) :, None]
            found.append(torch.log_softmax(scores.float(), -1).gather(1, chosen)[:, 0].tolist())
        return found


def _load(model: ModelConfig, base: BaseModel) -> tuple[Any, Any]:
    """Return the tokenizer and the model of a folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.folder, padding_side="left", trust_remote_code=model.trust_remote_code
        )
        tokenizer("x")  # one that is loaded need not be able to read a text
        return tokenizer, _load_model(model, base)
    except (OSError, ValueError, ImportError) as error:  # unknown architecture, missing file or package, ...
        raise UserError(f"model.path: transformers cannot load {base.folder}: {error}") from error
    except Exception as error:  # odd values in the folder's files raise whatever comes of them
        if model.trust_remote_code or isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise UserError(f"model.path: transformers cannot load {base.folder}: {said(error)}") from error


def _load_model(model: ModelConfig, base: BaseModel) -> Any:
    """Return the model of a folder. One with images is loaded with them if transformers has no other class for it."""
    # a folder may hold pickles, too, whose loading can run code
    keys = {
        "dtype": getattr(torch, model.dtype),
        "trust_remote_code": model.trust_remote_code,
        "use_safetensors": True,
    }
    try:
        return AutoModelForCausalLM.from_pretrained(base.folder, **keys)
    except ValueError:
        if "vision_config" not in base.config:
            raise
        return AutoModelForImageTextToText.from_pretrained(base.folder, **keys)


def by_member(members: Sequence[int | None], num_members: int) -> list[int]:
    """Return which request is in which row of a batch with as many rows for each member; -1 where none is.

    `members` are those of the requests.
    """
    rows: list[list[int]] = [[] for _ in range(num_members)]
    for place, member in enumerate(members):
        assert member is not None
        rows[member].append(place)
    most = max(map(len, rows))
    return [place for row in rows for place in row + [-1] * (most - len(row))]


def _contiguous(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Make the input of the output layer contiguous.

    It is the last token of each prompt, a slice. If weights need no gradient, torch computes one product for each row
    of such a slice and, in bfloat16 on a CPU, copies the whole layer for each of them.
    """
    return (inputs[0].contiguous(), *inputs[1:])


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("engine.device: cuda was asked for, but this rank sees no GPU (CUDA_VISIBLE_DEVICES?)")
    # Slurm shows each rank its own GPUs, or all ranks all GPUs of the node. This is right in both cases.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _read(base: BaseModel, view: View) -> torch.Tensor:
    """Return the checkpoint's values for a view, after making sure that the engine holds just these."""
    theta = base.read(view.name, view.rows, view.cols)
    assert view.live is not None
    if view.scales is not None:
        return theta  # compared before the layer was quantized
    if not torch.equal(theta.to(view.live.dtype), view.live.cpu()):
        if theta.isnan().any():
            raise UserError(f"model.path: {view.name} of {base.folder} holds NaN: the checkpoint is damaged")
        raise UserError(f"model.path: {view.name} does not hold the values of {base.folder}")
    return theta
