"""Engines: what generates text from weights that ES perturbs."""

from esmpi.config.sections import Config
from esmpi.engines.base import Completion, Engine, Sampling
from esmpi.model.base_model import BaseModel
from esmpi.mpi.comm import Place


def load_engine(config: Config, checkpoint: BaseModel, place: Place) -> Engine:
    """Load the model into the engine that the config asks for."""
    if config.engine.kind == "vllm":
        from esmpi.engines.vllm import VllmEngine

        return VllmEngine(config.model, config.engine, checkpoint, place)
    from esmpi.engines.hf import HfEngine

    return HfEngine(config.model, config.engine, checkpoint, place)


__all__ = ["Completion", "Engine", "Sampling", "load_engine"]
