"""The text of docs/memory.md, which tools/reference.py writes: where theta goes, for models and GPUs of many sizes."""

from esmpi.config.sections import ModelConfig
from esmpi.engines.vllm import VllmConfig
from esmpi.errors import UserError
from esmpi.weights.placement import choose_placement

HEAD = """# Which model fits on which GPU

<!-- made by tools/memory_page.py from esmpi/weights/placement.py; do not edit -->

This page is for people who plan a run with engine `vllm`. For models and GPUs of many sizes, it shows where
`engine.theta_placement: auto` puts theta, with bfloat16 live weights and the default `engine.gpu_memory_utilization` of
0.9. The last tables have quantized ones. `esmpi run CONFIG --dry-run` prints the same for your model, and [engines and
memory](engines.md) explains it.

- **device**: theta and the live weights are on the GPU, and at least 30 % of the memory is left for the cache.
- **host, N s**: theta is in host memory, and streaming it to the GPU takes about N seconds per member. An update takes
  twice as long. A plus sign means that `host+bf16` fits as well: then members need no streaming, only updates do.
- **no**: the live weights and 3 GiB for the cache and activations do not fit.

With theta in host memory, each rank of a node holds all of it there, or with `engine.share_theta` all of them together:
4 bytes per weight, in the last column. The seconds assume that each GPU gets {rates} GB/s from host memory, in
the order of the columns. They are not measured, and longer if the host's memory cannot feed all GPUs of a node at once.
"""
MODELS = {
    "0.5B": (0.494e9, 0.136e9),
    "1.5B": (1.544e9, 0.233e9),
    "3B": (3.086e9, 0.311e9),
    "7B": (7.616e9, 1.090e9),
    "14B": (14.77e9, 1.557e9),
    "32B": (32.76e9, 1.557e9),
    "70B": (70.55e9, 2.101e9),
}
"""Weights of models, and how many of them embeddings and heads have: those of Qwen2.5, and Llama 3.1 70B."""
QUANTIZED = """## One GPU, with quantized live weights (`model.quantization: int8` or `fp8`)

One byte per weight of a linear layer, and two for embeddings and the head. `host+bf16` cannot be combined with this.
"""
INT4 = """## One GPU, with live weights of 4 bits (`model.quantization: int4`, `es.noise: low_rank`)

Nine sixteenths of a byte per weight of a linear layer, scales included, and two for embeddings and the head. Weights
are not written between members: theta is streamed once in a generation, and an update takes twice as long.
"""
INT4_BYTES = 0.5 + 4 / 64
GPUS = {"16 GB": (15.0, 12), "24 GB": (22.5, 25), "40 GB": (39.5, 25), "80 GB": (79.0, 50), "141 GB": (139.0, 50)}
"""GPUs by name: GiB that a program finds, and GB/s from the host."""
PARALLEL = (1, 2, 4, 8)


def memory_page() -> str:
    """Return the page."""
    lines = [HEAD.format(rates=", ".join(str(rate) for _, rate in GPUS.values()))]
    for parallel in PARALLEL:
        of_each = "one GPU" if parallel == 1 else f"{parallel} GPUs"
        lines += [f"## A rank with {of_each} (`engine.tensor_parallel_size: {parallel}`)", ""]
        lines += table(parallel)
    lines += [QUANTIZED, *table(1, 1.0), INT4, *table(1, INT4_BYTES)]
    return "\n".join(lines).rstrip() + "\n"


def table(parallel: int, quantized: float | None = None) -> list[str]:
    """Return the lines of a table, and an empty one; `quantized` is the bytes of a weight in quantized layers."""
    lines = [f"| weights | {' | '.join(GPUS)} | host memory of a rank |", "|---" * (len(GPUS) + 2) + "|"]
    each = ModelConfig(path="").bytes_per_weight
    for name, (weights, kept) in MODELS.items():
        live = (quantized or each) * (weights - kept) + each * kept
        sizes = 4 * weights / parallel, live / parallel
        cells = [cell(*sizes, gib, rate, quantized is not None) for gib, rate in GPUS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {4 * weights / 2**30:.0f} GiB |")
    return [*lines, ""]


def cell(theta_bytes: float, live_bytes: float, gib: float, rate: float, quantized: bool) -> str:
    """Return what happens to a model on GPUs of a size."""
    theta, live = int(theta_bytes), int(live_bytes)
    memory = int(VllmConfig().gpu_memory_utilization * gib * 2**30)
    try:
        placement, _ = choose_placement("auto", theta, live, memory)
    except UserError:
        return "no"
    if placement == "device":
        return "device"
    try:
        choose_placement("host+bf16", theta, live, memory)
        more = "" if quantized else "+"
    except UserError:
        more = ""
    return f"host{more}, {theta / rate / 1e9:.1f} s"
