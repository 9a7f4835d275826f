"""esmpi: fine-tune language models with Evolution Strategies on a Slurm cluster."""

from esmpi.version import __version__

__all__ = ["__version__"]
