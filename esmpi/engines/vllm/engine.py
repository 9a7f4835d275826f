"""Engine `vllm`: one vLLM engine a rank, in this process, or with worker processes for tensor parallelism."""

import itertools
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from esmpi.config.sections import ModelConfig
from esmpi.engines.base import (
    Completion,
    Engine,
    Request,
    Sampling,
    Waves,
    require_numbers,
    require_unquantized,
)
from esmpi.engines.vllm import VllmConfig, mixes_experts
from esmpi.engines.vllm.gpus import check_gpus, visible_gpus
from esmpi.engines.vllm.self_test import SelfTest
from esmpi.engines.vllm.workers import Workers
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, kinds_of
from esmpi.model.quantization import live_bytes, quantized_names, require_noise_in_outputs
from esmpi.mpi.comm import Place
from esmpi.mpi.launcher import launcher
from esmpi.noise.format import Noise
from esmpi.weights.model_weights import ModelWeights, Perturbation
from esmpi.weights.placement import Placement, choose_placement

log = logging.getLogger(__name__)

_EXTENSION = "esmpi.engines.vllm.worker.WorkerExtension"
_TESTED = (0, 26), (0, 34)
"""The first version of vLLM that was run or read with esmpi, and the first newer one that was not."""
_FIRST_PORT, _PORTS_PER_RANK = 20_000, 64
_STREAMING_BYTES = 192 * 2**20
"""Device memory that perturbing and updating need above theta and the live weights."""
_QUANTIZING_BYTES = 256 * 2**20
"""What they need more if live weights are quantized, which are float32 before."""


class VllmEngine(Engine):
    """A vLLM engine whose weights are perturbed in place, inside its workers.

    Raises
    ------
    UserError
        If vLLM is missing, or keeps weights where ES cannot reach them; the parameter is named.
    """

    def __init__(
        self, model: ModelConfig, engine: VllmConfig, base: BaseModel, place: Place, waves: Waves | None = None
    ):
        num_workers = engine.num_workers
        cores = _share(place.cores[: engine.num_threads or len(place.cores)], num_workers)
        require_unquantized(base, engine.vllm_args.get("quantization"))
        engine.check_quantization(model)
        check_gpus(num_workers, place)
        self._noise_in_outputs = model.quantization == "int4"
        self._slots = engine.slots(waves, base, self._noise_in_outputs)
        if waves is not None and waves.noise.rank and engine.wave_size != 1 and mixes_experts(base):
            log.warning("vLLM has no adapters for experts, so members are evaluated one at a time")
        _set_environment(engine, place, cores)
        log.info("vLLM: starting; it loads and compiles the model, which takes a minute or two on a CPU")
        try:
            with _without_remarks():
                import vllm
                from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"engine.kind: vllm cannot be imported ({error}): install 'esmpi[vllm]', or choose engine.kind=hf"
            ) from error
        self._vllm = vllm
        _check_vllm(vllm.__version__, engine)
        placement, utilization = _place_theta(model, engine, base)
        if current_platform.is_cpu():
            torch.set_num_threads(len(cores[0]))  # vLLM makes this a no-op later
            if num_workers == 1:
                os.sched_setaffinity(0, cores[0])
        self._prefix_caching = engine.prefix_caching
        adapters = _adapter_arguments(self._slots, waves)
        with _without_remarks():
            try:
                self._workers = Workers(
                    partial(vllm.LLM, **_llm_arguments(model, engine, base, utilization) | adapters)
                )
            except Exception as error:  # a worker that fails raises a plain Exception here
                said = " ".join(str(error).split())[:1500].rstrip(".") or type(error).__name__
                if adapters and "LoRA" in said:  # it has none for the model, or for so large a vocabulary
                    raise UserError(
                        f"engine: vLLM does not start: {said}: set engine.wave_size=1 to evaluate members one at a time"
                    ) from error
                raise UserError(f"engine: vLLM does not start: {said}") from error
        log.info("vLLM: started; finding where it keeps each weight, and comparing all of them with the checkpoint")
        found = _rectangles(self._rpc("esmpi_find", str(base.folder), sorted(quantized_names(model, base))))
        cuts: dict[str, list[int]] = defaultdict(list)
        for name, rows, _ in itertools.chain(*found):
            cuts[name] += rows
        for trouble in self._rpc("esmpi_open", dict(cuts), cores, placement, place.memory):
            if trouble is not None:
                raise UserError(trouble)
        # Refers to the workers alone: a reference cycle with this engine would keep them alive when it is dropped.
        self.weights = ModelWeights(base, self._workers.call_shards)
        self.weights.aliases = _aliases(self.weights.names, base)
        self.tokenizer = self._llm.get_tokenizer()
        self._wave: Sequence[Perturbation] = ()
        if engine.self_test:
            require_numbers(self._self_test().signature(), model, base)  # else it could not tell outputs apart
            self._self_test().weights()
        self._open_adapters(waves)
        if engine.self_test and self._slots and waves is not None:
            self._self_test().slots(waves.noise, self._slots, self._noise_in_outputs)

    def _self_test(self) -> SelfTest:
        return SelfTest(self, self._llm.llm_engine.model_config.get_vocab_size())

    @property
    def _llm(self) -> Any:
        return self._workers.llm

    @property
    def max_length(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

    def gpus(self) -> list[str]:
        return [gpu for gpu in self._rpc("esmpi_gpu") if gpu is not None]

    def _open_adapters(self, waves: Waves | None) -> None:
        """Take vLLM's slots for adapters, unless matrices that have noise are without any."""
        if not self._slots or waves is None:
            return
        without = {name for worker in self._rpc("esmpi_open_adapters") for name in worker}
        unreached = sorted(name for name in without if waves.noise.scale(name, (0, 0)))
        if self._noise_in_outputs:
            require_noise_in_outputs(waves.noise, unreached)
        if unreached:
            self._slots = 0
            log.warning(
                "vLLM has no adapters for these matrices, so members are evaluated one at a time: %s",
                ", ".join(kinds_of(unreached)),
            )

    def wave_size(self, requests: Sequence[Request], sampling: Sampling, noise: Noise) -> int:
        return self._slots if noise.rank and self._slots else 1

    def perturb(self, wave: Sequence[Perturbation]) -> None:
        noise = wave[0].noise
        if self._noise_in_outputs and not self._slots:
            require_noise_in_outputs(noise, self.weights.names)
        self._wave = wave if noise.rank and self._slots else ()
        if self._wave:
            self.weights.restore()
            seeds, scales = [member.seed for member in wave], [member.scale for member in wave]
            self._rpc("esmpi_prepare", seeds, scales, noise.rank, noise.scales)
        else:
            self.weights.perturb(wave)

    def check(self, sampling: Sampling) -> None:
        super().check(sampling)
        try:
            self._parameters(sampling)
        except Exception as error:  # some versions have an error of their own, others raise a ValueError
            raise UserError(f"sampling: vLLM refuses this: {' '.join(str(error).split())}") from error

    def _parameters(self, sampling: Sampling, **more: Any) -> Any:
        """Return vLLM's own form of a sampling: it has the same names, but takes lists."""
        keys = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(sampling).items()}
        # its own way to include a stop string would also include end-of-text tokens that are not special
        del keys["include_stop"]
        return self._vllm.SamplingParams(**keys, **more)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        # each request has a stream of its own, whatever is batched with it
        parameters = [
            self._parameters(sampling, seed=request.seed if sampling.temperature > 0 else None) for request in requests
        ]
        slots = [request.member if self._wave else None for request in requests]
        prompts = [request.prompt for request in requests]
        completions = [output.outputs[0] for output in self.complete(prompts, parameters, slots)]
        return [
            Completion(
                text=completion.text + _stop_string(completion) * sampling.include_stop,
                num_tokens=len(completion.token_ids),
                truncated=completion.finish_reason == "length",
                tokens=tuple(completion.token_ids),
            )
            for completion in completions
        ]

    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        starts = self.tokenizer(list(prompts))["input_ids"]
        # vLLM generates at least one more token, which needs room
        whole = [
            [*start, *completion.tokens][: self.max_length - 1]
            for start, completion in zip(starts, completions, strict=True)
        ]
        return [logprobs[len(start) :] for logprobs, start in zip(self.prompt_logprobs(whole), starts, strict=True)]

    def complete(self, prompts: list[Any], parameters: Any, slots: Sequence[int | None] = ()) -> list[Any]:
        """Return vLLM's own outputs for prompts of its own form, in their order; `slots` are those of adapters."""
        from vllm.lora.request import LoRARequest

        adapters = [None if slot is None else LoRARequest(f"member {slot}", slot + 1, "in memory") for slot in slots]
        # Blocks that were filled with other weights must not be found again.
        if self._prefix_caching and not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM would not reset its prefix cache: a request is still running")
        with self._workers.missed():
            return list(self._llm.generate(prompts, parameters, use_tqdm=False, lora_request=adapters or None))

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        return self._workers.call(method, *arguments)

    def prompt_logprobs(self, prompts: list[list[int]]) -> list[list[float]]:
        """Return the log probability of each token of the prompts; 0 for the first, which nothing precedes."""
        parameters = self._vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        outputs = self.complete([{"prompt_token_ids": tokens} for tokens in prompts], parameters)
        return [
            [0.0, *(output.prompt_logprobs[i][tokens[i]].logprob for i in range(1, len(tokens)))]
            for output, tokens in zip(outputs, prompts, strict=True)
        ]


def _stop_string(completion: Any) -> str:
    """Return the stop string that ended a completion, which its text is without; empty if none did."""
    return completion.stop_reason if isinstance(completion.stop_reason, str) else ""


def _check_vllm(version: str, engine: VllmConfig) -> None:
    """Warn of a version that nobody has tried; raise UserError for what vLLM has on GPUs only."""
    from vllm.platforms import current_platform

    if not _TESTED[0] <= tuple(map(int, re.findall(r"\d+", version)[:2])) < _TESTED[1]:
        log.warning(
            "vLLM %s is outside the range that esmpi was tested with, from %d.%d to before %d.%d: the checks at "
            "the start will show whether it works",
            version,
            *_TESTED[0],
            *_TESTED[1],
        )
    if engine.batch_invariant and current_platform.is_cpu():
        raise UserError(
            "engine.batch_invariant: vLLM has batch-invariant kernels for GPUs only: set it to false. On a CPU, "
            "greedy completions in float32 do not depend on their batch (model.dtype=float32)"
        )


def _place_theta(model: ModelConfig, engine: VllmConfig, base: BaseModel) -> tuple[Placement, float]:
    """Return the placement of theta, and the share of a GPU's memory that remains for vLLM."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():  # on a CPU all placements are the same memory
        return "host+bf16" if engine.theta_placement == "host+bf16" else "host", engine.gpu_memory_utilization
    theta, live = (count // engine.num_workers for count in (4 * base.num_weights, live_bytes(model, base)))
    # vLLM's own answer for a rank with one GPU, also where that is a slice of one (MIG)
    memory = torch.cuda.mem_get_info()[1] if engine.num_workers == 1 else current_platform.get_device_total_memory()
    allowed = int(engine.gpu_memory_utilization * memory)
    placement, why = choose_placement(engine.theta_placement, theta, live, allowed)
    log.info("%s", why)
    # vLLM fills all memory that it may use with its cache, so our share is subtracted first
    ours = {"device": theta, "host": 0, "host+bf16": live}[placement] + _STREAMING_BYTES
    if model.quantization != "none":
        ours += _QUANTIZING_BYTES
    return placement, engine.gpu_memory_utilization - ours / memory


def _llm_arguments(model: ModelConfig, engine: VllmConfig, base: BaseModel, utilization: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(base.folder),
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "gpu_memory_utilization": utilization,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.prefix_caching,
        "worker_extension_cls": _EXTENSION,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() and mixes_experts(base):
        # the kernels that vLLM prefers on newer GPUs rearrange the experts' weights, which ES could then not perturb
        arguments["moe_backend"] = "triton"
    if model.quantization != "none":
        from esmpi.engines.vllm.quantized import method_name

        arguments["quantization"] = method_name(model.quantization)
    if "vision_config" in base.config:
        arguments["language_model_only"] = True  # ES trains on text, and the image encoder would stay as it is
    for key in ("max_model_len", "max_num_seqs"):
        if getattr(engine, key) is not None:
            arguments[key] = getattr(engine, key)
    return arguments | engine.vllm_args


def _adapter_arguments(slots: int, waves: Waves | None) -> dict[str, Any]:
    """Return arguments for `vllm.LLM` that make it keep this many slots."""
    if not slots or waves is None:
        return {}
    from vllm.config import lora

    # vLLM has slots for some ranks only; what is beyond that of the noise stays 0
    rank = min((rank for rank in get_args(lora.MaxLoRARanks) if rank >= waves.noise.rank), default=waves.noise.rank)
    return {"enable_lora": True, "max_loras": slots, "max_lora_rank": rank}


def _set_environment(engine: VllmConfig, place: Place, cores: list[list[int]]) -> None:
    """Tell vLLM, by its environment, which processes, processors and GPUs to use. Before it is imported."""
    num_workers = len(cores)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(engine.cpu_kv_cache_gib))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores[0])))  # otherwise vLLM leaves one core of the CPU idle
    if engine.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"  # vLLM reads it when its modules are loaded, in workers as well
    if num_workers > 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, worker)) for worker in cores))
    # vLLM forks its workers by default, but a child of a process in which CUDA or MPI has started cannot use CUDA.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if place.num_local_ranks > 1:
        # vLLM looks for a free port and takes it only later: ranks that look at the same time find the same one.
        # Jobs on one node differ by the parent of their ranks.
        slot = place.local_rank + 16 * (os.getppid() % 40)
        os.environ.setdefault("VLLM_PORT", str(_FIRST_PORT + _PORTS_PER_RANK * slot))
    started_by = launcher()
    if started_by is not None and started_by.size > 1 and visible_gpus():
        # vLLM does not expect that several engines write its compile cache at the same time, on one node or on several
        root = os.environ.get("VLLM_CACHE_ROOT") or str(Path.home() / ".cache" / "vllm")
        own = f"rank-{started_by.rank}"
        os.environ["VLLM_CACHE_ROOT"] = root if Path(root).name == own else str(Path(root) / own)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep remarks of vLLM and its libraries off the screen: on parts they do without, on names they should not use."""
    remarks = logging.getLogger("vllm.triton_utils.importing")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        remarks.setLevel(level)


def _share(cores: Sequence[int], num_workers: int) -> list[list[int]]:
    """Deal processors out to workers, at least one each."""
    each = max(1, len(cores) // num_workers)
    return [[cores[(i * each + j) % len(cores)] for j in range(each)] for i in range(num_workers)]


def _rectangles(said: list[Any]) -> list[list[tuple[str, tuple[int, int], tuple[int, int]]]]:
    """Return what each worker's views hold; raise UserError if a worker said what is wrong instead."""
    for worker in said:
        if isinstance(worker, str):
            raise UserError(worker)
    # from another process tuples come as lists
    return [[(name, tuple(rows), tuple(cols)) for name, rows, cols in worker] for worker in said]


def _aliases(used: list[str], base: BaseModel) -> dict[str, str]:
    """Return the checkpoint's names of tied tensors that are not canonical; warn of tensors that vLLM does not use."""
    aliases = base.tied_to(used)
    rest = sorted(base.tensors.keys() - set(used) - aliases.keys())
    if rest:
        log.warning(
            "vLLM does not use these tensors of the checkpoint; they stay as they are: %s", ", ".join(kinds_of(rest))
        )
    return aliases
