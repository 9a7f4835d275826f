"""What a run will cost, told before anything heavy is loaded: `--dry-run`."""

from esmpi.checkpoint import Checkpoint, find_model
from esmpi.config import Config
from esmpi.data import check_files
from esmpi.population import shard

_BYTES = {"float32": 4, "bfloat16": 2}


def check_inputs(config: Config) -> Checkpoint | None:
    """Look for the model and the data files; return the model if it is on this machine, None if on the hub.

    Raises
    ------
    UserError
        If something is missing.
    """
    check_files(config.data)
    folder = find_model(config.model.path, config.model.revision)
    return None if folder is None else Checkpoint(folder)


def describe(config: Config, num_ranks: int) -> str:
    """Return the resolved config and the plan of a run on so many ranks.

    Raises
    ------
    UserError
        If the model or the data are missing.
    """
    return f"{config.to_yaml()}\n" + "\n".join(f"# {line}" for line in plan_lines(config, num_ranks))


def plan_lines(config: Config, num_ranks: int) -> list[str]:
    """Return the plan: members of each rank, memory, and tokens of a generation."""
    model = check_inputs(config)
    es, data = config.es, config.data
    members = [len(shard(es.population_size, rank, num_ranks)) for rank in range(num_ranks)]
    completions = es.population_size * data.batch_size
    lines = [
        f"run directory   {config.directory}",
        f"ranks           {num_ranks}, each evaluates {_range(members)} of {es.population_size} members",
        f"a generation    {completions:,} completions ({es.population_size} members x {data.batch_size} prompts), "
        f"at most {completions * config.sampling.max_tokens:,} new tokens",
        f"the run         {es.generations} generations, sigma {es.sigma:g}, alpha {es.step_size:g}",
    ]
    if members[-1] == 0:
        lines.append(f"warning         {members.count(0)} ranks have no member: they only wait")
    return lines + (_memory(config, model) if model else ["memory          not known before the model is downloaded"])


def _memory(config: Config, model: Checkpoint) -> list[str]:
    tied = model.config.get("tie_word_embeddings") and "lm_head.weight" in model.tensors
    num_weights = sum(
        tensor.num_elements for name, tensor in model.tensors.items() if not (tied and name == "lm_head.weight")
    )
    theta, live = 4 * num_weights, _BYTES[config.model.dtype] * num_weights
    line = f"theta {_size(theta)} + live weights {_size(live)}"
    if config.engine.kind == "vllm":
        num_workers = config.engine.tensor_parallel_size * config.engine.pipeline_parallel_size
        return [
            f"memory          {num_weights:,} weights; each rank: theta {_size(theta)} in host memory, and on its "
            f"{num_workers} devices live weights {_size(live)}; vLLM's cache takes what is left of "
            f"{config.engine.gpu_memory_utilization:.0%} of a GPU, or {config.engine.cpu_kv_cache_gib} GiB on a CPU"
        ]
    shape = model.config
    if {"num_hidden_layers", "num_attention_heads", "hidden_size"} <= shape.keys():
        heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
        head_size = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        token = 2 * shape["num_hidden_layers"] * heads * head_size * _BYTES[config.model.dtype]
        prompts = config.data.mini_batch_size or config.data.batch_size
        cache = _size(token * prompts * config.sampling.max_tokens)
        line += f" + cache {cache} ({prompts} prompts x {config.sampling.max_tokens} new tokens, and the prompts' own)"
    return [f"memory          {num_weights:,} weights; each rank: {line}"]


def _range(counts: list[int]) -> str:
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[-1]} to {counts[0]}"


def _size(num_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"
