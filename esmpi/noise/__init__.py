"""The noise of esmpi, version 1, and the arithmetic that stands on it.

Counter-based: any block of any tensor can be made alone, in any order, on any device.
`format` has what a seed and a name mean, `cpu` the kernels. docs/noise.md has the whole definition, and
`tests/noise/golden_noise.json` pins it.
"""

from esmpi.noise.format import LOW_RANK_NOISE_VERSION, NOISE_VERSION, member_seed, member_seeds, tensor_key

__all__ = ["LOW_RANK_NOISE_VERSION", "NOISE_VERSION", "member_seed", "member_seeds", "tensor_key"]
