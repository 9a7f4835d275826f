"""The noise of esmpi and the arithmetic that stands on it.

Counter-based: any block of any tensor can be made alone, in any order, on any device.
`format` has what a seed and a name mean, `cpu` the kernels. docs/noise.md has the whole definition, and
`tests/noise/golden_noise.json` pins it.
"""

from esmpi.noise.format import NOISE_VERSIONS, member_seed, member_seeds, tensor_key

__all__ = ["NOISE_VERSIONS", "member_seed", "member_seeds", "tensor_key"]
