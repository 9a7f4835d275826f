"""The configuration of a run: one YAML file plus `section.key=value` overrides, checked into frozen dataclasses.

Importing this module is cheap: no torch, no MPI.
"""

import dataclasses
import io
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from esmpi.errors import UserError, nearest
from esmpi.tasks import TASKS, TaskConfig


class ConfigError(UserError):
    """A config that cannot be run."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    """Name of the run; its directory is `<output_dir>/<name>`."""
    output_dir: str = "runs"
    """Folder of all runs, on a file system that rank 0 can write."""
    seed: int = 0
    """Decides every random stream: noise, generated problems, draws of prompts, sampling."""
    export_dtype: Literal["float32", "bfloat16", "none"] = "float32"
    """Type of the weights in the exported model folder; float32 is theta to the bit."""

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"[\w.+=,-]+", self.name)),
            f"name: letters, digits and _.+=,- only: {self.name!r}",
        )
        _require(self.name not in (".", ".."), f"name: {self.name!r} is no name for a directory")
        _require(0 <= self.seed < 2**63, f"seed: wants 0 <= seed < 2^63, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str
    """A Hugging Face model folder, a hub id (org/name), or `esmpi:tiny_countdown`, which ships with esmpi."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the live weights that the engine computes with. Theta is float32 in any case."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    kind: Literal["hf", "vllm"] = "hf"
    """What generates: `hf` is transformers' own generation, on the CPU or a GPU; `vllm` is vLLM."""
    num_threads: int | None = None
    """CPU cores of a rank. null: those it may use, shared with the other ranks that may use the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """hf: where the live weights are; auto takes a GPU if this rank has one. (vLLM is built for one device.)"""
    tensor_parallel_size: int = 1
    """vllm: worker processes, with a GPU each, that share every layer of one model."""
    pipeline_parallel_size: int = 1
    """vllm: groups of workers that share the layers among them."""
    gpu_memory_utilization: float = 0.9
    """vllm: share of a GPU's memory for weights, cache and activations."""
    cpu_kv_cache_gib: int = 1
    """vllm on a CPU: size of the cache, GiB."""
    max_model_len: int | None = None
    """vllm: tokens of a prompt and its completion, at most. null: the model's own limit."""
    max_num_seqs: int | None = None
    """vllm: completions that are generated at once, at most. null: vLLM's default."""
    enforce_eager: bool = False
    """vllm: no CUDA graphs; starts faster, generates slower."""
    prefix_caching: bool = False
    """vllm: compute a beginning that prompts share once a call. Saves time; what shares a cache may round otherwise."""
    self_test: bool = True
    """vllm: make sure at the start that a perturbation of each kind of weight changes the outputs."""
    vllm_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """vllm: further arguments of `vllm.LLM`, passed as they are."""

    def __post_init__(self) -> None:
        for name in (
            *("num_threads", "tensor_parallel_size", "pipeline_parallel_size", "cpu_kv_cache_gib"),
            *("max_model_len", "max_num_seqs"),
        ):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= 2**31, f"{name}: at least 1, got {value}")
        _require(self.num_threads is None or self.num_threads <= 4096, f"num_threads: {self.num_threads} is too many")
        _require(
            0 < self.gpu_memory_utilization <= 1,
            f"gpu_memory_utilization: wants a share above 0, at most 1, got {self.gpu_memory_utilization}",
        )
        taken = sorted(_SET_BY_ESMPI & self.vllm_args.keys())
        _require(not taken, f"vllm_args: {', '.join(taken)}: esmpi sets this by a key of its own")
        if self.kind == "hf":
            for field in dataclasses.fields(self):
                if field.name not in ("kind", "num_threads", "device"):
                    default = field.default if field.default is not dataclasses.MISSING else {}
                    _require(getattr(self, field.name) == default, f"{field.name}: only for engine.kind: vllm")
        else:
            _require(self.device == "auto", "device: only for engine.kind: hf; vLLM is built for one device")


_SET_BY_ESMPI = {
    *("model", "dtype", "trust_remote_code", "tensor_parallel_size", "pipeline_parallel_size", "seed"),
    *("gpu_memory_utilization", "enforce_eager", "enable_prefix_caching", "worker_extension_cls"),
    *("max_model_len", "max_num_seqs"),
}


@dataclass(frozen=True, kw_only=True)
class EsConfig:
    population_size: int = 30
    """Members of a generation, N."""
    generations: int
    """How many updates the run makes."""
    sigma: float = 1e-3
    """Perturbation scale: a member's weights are theta + sigma * eps."""
    alpha: float | None = None
    """Step size: theta += alpha / N * sum of shaped fitness times eps. null: sigma / 2, filled in."""
    shaping: Literal["zscore", "centered_rank"] = "zscore"
    """How fitness becomes shaped fitness: z-scores, or ranks from -0.5 to 0.5."""
    antithetic: bool = False
    """Whether members come in pairs of +eps and -eps."""

    def __post_init__(self) -> None:
        _require(
            2 <= self.population_size <= 10**7, f"population_size: wants 2 to 10 million, got {self.population_size}"
        )
        _require(0 <= self.generations <= 10**9, f"generations: wants 0 to 10^9, got {self.generations}")
        # below float32's resolution of any weight nothing would move
        _require(1e-12 <= self.sigma < 1e3, f"sigma: wants 1e-12 <= sigma < 1000, got {self.sigma}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
        _require(1e-12 <= self.step_size < 1e3, f"alpha: wants 1e-12 <= alpha < 1000, got {self.alpha}")
        _require(
            not self.antithetic or self.population_size % 2 == 0,
            f"population_size: antithetic pairs need an even number, got {self.population_size}",
        )

    @property
    def step_size(self) -> float:
        """Alpha, which is never None once the config is checked."""
        assert self.alpha is not None
        return self.alpha


GENERATED = "generated"
"""Instead of a file: the task makes the problems."""
_GENERATED_COUNTS = {"train": 1000, "eval": 400}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = GENERATED
    """Training problems: a .jsonl file, or `generated` by the task."""
    eval: str = GENERATED
    """Held-out problems: a .jsonl file, or `generated` (never one of the training problems)."""
    num_train: int | None = None
    """Use the first so many training problems of the file; how many to generate (default 1000)."""
    num_eval: int | None = None
    """Use the first so many held-out problems of the file; how many to generate (default 400)."""
    batch_size: int = 200
    """Prompts of a generation, the same for every member."""
    mini_batch_size: int | None = None
    """Prompts that the engine gets at once, to bound memory; null: all of them."""
    order: Literal["fixed", "random", "epochs"] = "epochs"
    """Prompts of a generation: always the first `batch_size`; a fresh draw; or all in turn, shuffled each time."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_eval", "batch_size", "mini_batch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}: at least 1, got {value}")
        for part, count in _GENERATED_COUNTS.items():
            if getattr(self, part) == GENERATED and getattr(self, f"num_{part}") is None:
                object.__setattr__(self, f"num_{part}", count)
        _require(
            self.num_train is None or self.batch_size <= self.num_train,
            f"batch_size: {self.batch_size} prompts wanted of num_train: {self.num_train} problems",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    max_tokens: int = 1024
    """New tokens of a completion, at most."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability; needs a temperature."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens: at least 1, got {self.max_tokens}")
        _require(0 <= self.temperature <= 100, f"temperature: wants 0 to 100, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p: wants 0 < top_p <= 1, got {self.top_p}")
        _require(
            self.top_p == 1 or self.temperature > 0,
            "top_p: has no effect on greedy decoding: set sampling.temperature, too",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every: int | None = None
    """Evaluate the held-out problems every so many generations; null: only before the first and after the last."""
    temperature: float = 0.0
    """0 is greedy decoding."""

    def __post_init__(self) -> None:
        _require(self.every is None or self.every >= 1, f"every: at least 1, got {self.every}")
        _require(0 <= self.temperature <= 100, f"temperature: wants 0 to 100, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are shown."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where figures go besides the run file and the screen."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections are described at their classes."""

    run: RunConfig
    model: ModelConfig
    engine: EngineConfig
    es: EsConfig
    task: TaskConfig
    data: DataConfig
    sampling: SamplingConfig
    eval: EvalConfig
    log: LogConfig

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run.output_dir).expanduser() / self.run.name

    def to_dict(self) -> dict[str, Any]:
        """Return the config, fully resolved, in the types that JSON has (so a tuple is a list)."""
        return dict(msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(self))))

    def to_yaml(self) -> str:
        """Return the config, fully resolved, as YAML."""
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
        yaml.dump(self.to_dict(), stream)
        return stream.getvalue()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides such as `es.sigma=2e-3`, and check everything.

    Raises
    ------
    ConfigError
        With one line that says what is wrong, where, and the nearest valid choice.
    """
    path = Path(path)
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        siblings = [str(path.parent / entry.name) for entry in path.parent.glob("*.yaml")]
        raise ConfigError(f"cannot read config {path}: {error.strerror}{nearest(str(path), siblings)}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ruamel raises all of these for bad text
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections: {', '.join(_sections())}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """Check a tree of plain types, as YAML or JSON gives it, into a Config; see `load_config`."""
    sections = _sections()
    for name in tree:
        if name not in sections:
            raise ConfigError(f"{name}: unknown section{nearest(str(name), sections)}")
    parsed = {}
    for name, section_type in sections.items():
        keys = tree.get(name)
        keys = {} if keys is None else keys
        if not isinstance(keys, dict):
            raise ConfigError(f"{name}: must be a section with keys of its own, got {reprlib.repr(keys)}")
        parsed[name] = _parse_section(name, _task_config_type(keys) if name == "task" else section_type, keys)
    return Config(**parsed)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return "section.key: old -> new" for each key in which two resolved configs differ."""
    lines = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                lines.append(f"{section}.{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines


def _sections() -> dict[str, type]:
    return {field.name: typing.cast(type, field.type) for field in dataclasses.fields(Config)}


def _task_config_type(keys: dict[str, Any]) -> type[TaskConfig]:
    name = keys.get("name")
    if not isinstance(name, str) or name not in TASKS:
        what = "missing key" if name is None else f"unknown task {name!r}"
        raise ConfigError(f"task.name: {what}{nearest(str(name), TASKS)}")
    return TASKS[name].config_type


def _parse_section(section: str, section_type: type, keys: dict[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(section_type)}
    hints = typing.get_type_hints(section_type)
    for key, value in keys.items():
        if key not in fields:
            raise ConfigError(f"{section}.{key}: unknown key{nearest(str(key), fields)}")
        choices = _choices(hints[key])
        if choices and value not in choices:
            raise ConfigError(f"{section}.{key}: must be one of {', '.join(choices)}; got {reprlib.repr(value)}")
    for key, field in fields.items():
        if key not in keys and field.default is dataclasses.MISSING is field.default_factory:
            raise ConfigError(f"{section}.{key}: missing; it has no default")
    try:
        return msgspec.convert(keys, section_type)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        if not place:  # a check in __post_init__, which names its key first
            raise ConfigError(f"{section}.{message}") from None
        key = re.split(r"[.\[`]", place.removeprefix("."))[0]
        if not key:
            raise ConfigError(f"{section}.{message}") from None
        raise ConfigError(f"{section}.{key}: {message.replace('`', '')}: {reprlib.repr(keys.get(key))}") from None


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r} is no override: write section.key=value, such as es.sigma=2e-3")
    try:
        value = _yaml(text)
    except (YAMLError, ValueError, RecursionError):
        value = text  # a name with signs that mean something in YAML
    if tree.get(section) is None:
        tree[section] = {}
    if not isinstance(tree[section], dict):
        raise ConfigError(f"{section}: must be a section with keys of its own, got {reprlib.repr(tree[section])}")
    tree[section][key] = value


def _yaml(text: str) -> Any:
    # YAML 1.2 reads 1e-3 as a number and refuses a key that is there twice; PyYAML does neither.
    return YAML(typ="safe", pure=True).load(text)
