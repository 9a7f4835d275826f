"""Run ES on a function of a vector: esmpi's own loop, noise, update, run file and replay, with a small engine.

`run_function("sphere", dimensions=100, overrides=es(shaping="raw", generations=5)).thetas` is theta of each generation.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from function_engine import FUNCTIONS
from safetensors.torch import save_file

import esmpi
from esmpi.config.reader import load_config
from esmpi.run import train_here
from esmpi.store.run_file import RunFile, run_file_path

HERE = Path(__file__).parent
NAME = "function"
"""Name of the runs, and so of their directories."""

Shapes = int | tuple[int, ...] | Mapping[str, tuple[int, ...]]
"""What theta is: a vector of so many weights, a tensor of this shape, or several tensors by name."""


def es(**keys: object) -> tuple[str, ...]:
    """Return overrides of the section `es`."""
    return tuple(f"es.{key}={value}" for key, value in keys.items())


@dataclass(frozen=True)
class FunctionRun:
    """What a run of G generations of N members did to D weights, those of all tensors by name. All float64."""

    function: str
    config: dict[str, Any]
    """The resolved config, by section and key."""
    thetas: np.ndarray
    """(G + 1, D): theta of each generation, as `esmpi.Run.theta` rebuilds it from the log and checks it."""
    fitness: np.ndarray
    """(G, N)."""
    coefficients: np.ndarray
    """(G, N): what the noise of each member was multiplied by."""
    digests: list[int]
    """Of theta after each generation, G of them."""

    @property
    def updates(self) -> np.ndarray:
        """What each generation added to theta, (G, D)."""
        return np.diff(self.thetas, axis=0)

    @property
    def gradients(self) -> np.ndarray:
        """The function's gradient where each generation began, (G, D)."""
        return np.array([FUNCTIONS[self.function].gradient(theta) for theta in self.thetas[:-1]])

    @property
    def values(self) -> np.ndarray:
        """The function at each theta, (G + 1,)."""
        return np.array([FUNCTIONS[self.function].value(theta) for theta in self.thetas])

    @property
    def cosines(self) -> np.ndarray:
        """The cosine of each update with the gradient where it began, (G,)."""
        products = (self.updates * self.gradients).sum(1)
        lengths = np.linalg.norm(self.updates, axis=1) * np.linalg.norm(self.gradients, axis=1)
        return np.asarray(products / lengths)

    def es(self, key: str) -> Any:
        """Return a value of the section `es`."""
        return self.config["es"][key]


def run_function(
    function: str,
    dimensions: Shapes = 100,
    overrides: Sequence[str] = (),
    *,
    start: float | np.ndarray = 1.0,
    directory: Path | None = None,
) -> FunctionRun:
    """Maximize a function in this process, and return what happened.

    Parameters
    ----------
    function : str
        A name of `function_engine.FUNCTIONS`.
    dimensions : Shapes
        D, or the shape of a matrix, as low-rank noise needs one, or several shapes by name.
    overrides : sequence of str
        Changes of the config, such as "es.sigma=0.1".
    start : float or array, optional
        Theta of generation 0: one number for all weights, or an array of D.
    directory : path, optional
        Where to keep the run in a subdirectory `NAME`, to resume it or to look at its files. By default it is deleted.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as folder:
            return run_function(function, dimensions, overrides, start=start, directory=Path(folder))
    train_here(load_config(write_config(function, dimensions, start, directory), overrides))
    return read_function_run(function, directory)


def write_config(function: str, dimensions: Shapes, start: float | np.ndarray, directory: Path) -> Path:
    """Write a model, if there is none yet, and a config that maximizes a function; return the config's path."""
    shapes = dimensions if isinstance(dimensions, Mapping) else {"theta": dimensions}
    sizes = {name: int(np.prod(shape)) for name, shape in sorted(shapes.items())}
    model = directory / "model"
    if not model.exists():
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        whole = torch.from_numpy(np.broadcast_to(start, sum(sizes.values())).astype(np.float32))
        parts = zip(sizes, whole.split(list(sizes.values())), strict=True)
        save_file({name: part.reshape(shapes[name]).clone() for name, part in parts}, model / "model.safetensors")
    config = {
        "run": {"name": NAME, "output_dir": str(directory), "export_dtype": "none"},
        "model": {"path": str(model), "dtype": "float32"},
        "engine": {"kind": f"{HERE}/function_engine.py:FunctionConfig", "function": function, "num_threads": 1},
        "es": {"population_size": 10, "generations": 1, "sigma": 0.01, "alpha": 1.0},
        "task": {"name": f"{HERE}/function_reward.py:value"},
        "data": {"train": "builtin", "eval": "builtin", "batch_size": 1},
        "log": {"level": "warning"},
    }
    path = directory / f"{NAME}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def read_function_run(function: str, directory: Path) -> FunctionRun:
    """Return the run that `run_function` or esmpi itself has left in a directory."""
    run = esmpi.open_run(directory / NAME)
    file = RunFile.open(run_file_path(directory / NAME))
    tensors = [sorted(run.theta(generation).items()) for generation in range(run.num_generations + 1)]
    return FunctionRun(
        function=function,
        config=run.config,
        thetas=np.array([torch.cat([part.double().reshape(-1) for _, part in parts]).numpy() for parts in tensors]),
        fitness=np.array([members["fitness"] for members in file.members]),
        coefficients=np.array([members["coefficient"] for members in file.members], np.float64),
        digests=[file.digest_after(generation + 1) for generation in range(run.num_generations)],
    )
