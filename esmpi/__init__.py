"""esmpi: fine-tune language models with Evolution Strategies on a Slurm cluster."""

__version__ = "0.1.0"
