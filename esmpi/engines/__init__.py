"""Engines: what generates text from weights that ES perturbs."""

from esmpi.checkpoint import Checkpoint
from esmpi.comm import Place
from esmpi.config import Config
from esmpi.engines.base import Completion, Engine, Sampling


def load_engine(config: Config, checkpoint: Checkpoint, place: Place) -> Engine:
    """Load the model into the engine that the config asks for."""
    if config.engine.kind == "vllm":
        from esmpi.engines.vllm import VllmEngine

        return VllmEngine(config.model, config.engine, checkpoint, place)
    from esmpi.engines.hf import HfEngine

    return HfEngine(config.model, config.engine, checkpoint, place)


__all__ = ["Completion", "Engine", "Sampling", "load_engine"]
