"""Make models/tiny_rounded for tools/bench_strategies.py: the tiny model with its weights rounded to five values.

Each row of each matrix keeps the values -2, -1, 0, 1 and 2 times half of its largest weight. The model still knows how
an answer looks, but most of its arithmetic is wrong, and Evolution Strategies take many generations to repair it. The
same weights come out on every machine, within seconds.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "esmpi" / "assets" / "tiny_countdown"


def rounded(weights: torch.Tensor, largest: int) -> torch.Tensor:
    """Return weights in steps of their row's largest absolute value over `largest`; vectors stay as they are."""
    if weights.dim() < 2:
        return weights
    steps = weights.float().abs().amax(1, keepdim=True) / largest
    return ((weights.float() / steps).round() * steps).to(weights.dtype)


def main() -> None:
    """Write the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=2, help="steps of the largest weight (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "models" / "tiny_rounded", help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for file in SOURCE.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, arguments.output)
    weights = {
        name: rounded(tensor, arguments.largest) for name, tensor in load_file(SOURCE / "model.safetensors").items()
    }
    save_file(weights, arguments.output / "model.safetensors", metadata={"format": "pt"})
    print(arguments.output)


if __name__ == "__main__":
    main()
