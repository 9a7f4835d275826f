"""The factors of low-rank noise as tensors, made where they are wanted."""

import numpy as np
import torch

from esmpi.noise import low_rank


def factors(
    device: torch.device,
    name: str,
    seeds: np.ndarray,
    rank: int,
    width: int,
    rows: tuple[int, int],
    cols: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B, (M, rows, r), and A, (M, r, columns), float32 on a device; see `esmpi.noise.low_rank.factors`."""
    if device.type == "cpu":
        b, a = low_rank.factors(name, seeds, rank, width, rows, cols)
        return torch.from_numpy(b), torch.from_numpy(a)
    from esmpi.noise import low_rank_gpu  # needs Triton

    return low_rank_gpu.factors(name, torch.from_numpy(seeds.view(np.int64)).to(device), rank, width, rows, cols)
