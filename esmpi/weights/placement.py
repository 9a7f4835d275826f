"""Choose where theta is, before memory is taken: beside the live weights on a GPU, or in host memory."""

from typing import Literal

from esmpi.errors import UserError

Placement = Literal["device", "host", "host+bf16"]
"""Where theta is: beside the live weights; in host memory; there, with a bfloat16 copy that stands for theta on the
device while members are evaluated (live = cast(bf16(theta) + sigma * eps)). Theta has the same bits in any case."""

_WEIGHTS_SHARE = 0.7
"""Largest share of an engine's memory that theta and live weights take by default; the rest is for the cache."""
_LEAST_REST = 3 * 2**30
"""Bytes of an engine's memory that must remain for the cache and activations, where the weights leave less."""


def choose_placement(wanted: str, theta: int, live: int, memory: int) -> tuple[Placement, str]:
    """Return the placement of theta, and why.

    Parameters
    ----------
    wanted : str
        `engine.theta_placement`.
    theta, live : int
        Bytes of theta and of the live weights on one device.
    memory : int
        Bytes of it that the engine may use for both, cache and activations.

    Raises
    ------
    UserError
        If the live weights alone do not fit, or theta does not where it is wanted.
    """
    comfortable, most = int(_WEIGHTS_SHARE * memory), weights_limit(memory)
    sizes = f"theta {size(theta)} + live weights {size(live)}, {size(most)} of {size(memory)} are for weights"
    if live > most:
        raise UserError(
            f"engine: the live weights alone do not fit on a GPU ({sizes}): more GPUs a rank "
            f"(engine.tensor_parallel_size), or larger ones"
        )
    if wanted == "host+bf16":
        if 2 * live > most:
            raise UserError(
                f"engine.theta_placement: host+bf16 keeps a second copy of the weights on the GPU, which does not fit "
                f"({sizes}): choose host, or more GPUs a rank (engine.tensor_parallel_size)"
            )
        return "host+bf16", "theta in host memory, a bfloat16 copy of it on the GPU"
    if wanted == "host":
        return "host", "theta in host memory, streamed to the GPU"
    if theta + live <= (most if wanted == "device" else comfortable):
        return "device", f"theta on the GPU ({sizes})"
    if wanted == "device":
        raise UserError(
            f"engine.theta_placement: device does not fit ({sizes}): choose host, or more GPUs a rank "
            f"(engine.tensor_parallel_size)"
        )
    reason = f"because beside it too little would be left for the cache ({sizes})"
    return "host", f"theta in host memory, streamed to the GPU, {reason}"


def weights_limit(memory: int) -> int:
    """Return the most bytes that weights may take of the `memory` that an engine may use on a device."""
    return max(int(_WEIGHTS_SHARE * memory), memory - _LEAST_REST)


def memory_wanted(weights: int) -> int:
    """Return the bytes that an engine must be allowed on a device that holds `weights` bytes of weights."""
    return min(int(weights / _WEIGHTS_SHARE) + 1, weights + _LEAST_REST)


def device_memory_wanted(theta: int, live: int) -> int:
    """Return the bytes that an engine must be allowed on a device so that `auto` puts theta there."""
    return int((theta + live) / _WEIGHTS_SHARE) + 1


def size(num_bytes: int) -> str:
    """Return a number of bytes as text."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"
