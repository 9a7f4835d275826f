"""Good files, which `tools/fuzz.py` damages: runs and models that are small and have everything that a reader reads."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.reader import parse_config
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.shipped import __file__ as shipped
from esmpi.store import generations as generation_table
from esmpi.store import members as member_table
from esmpi.store.run_file import GENERATION_DTYPE, RunFile

sys.path.append(str(Path(__file__).parents[2] / "tests" / "report"))
from made_runs import make_run  # type: ignore[import-not-found]  # of the tests

CONFIG: dict[str, Any] = {
    "run": {"name": "x"},
    "model": {"path": "esmpi:tiny_countdown"},
    "es": {"generations": 3},
    "task": {"name": "countdown"},
}


def example_run(folder: Path) -> RunFile:
    """Write a run with failures, events, evaluations, a profile and completions; return it."""
    return make_run(folder)


def segmented_run(folder: Path) -> RunFile:
    """Write a run that has segments of members and of generations; return it."""
    sizes = member_table.SEGMENT_BYTES, generation_table.SEGMENT_BYTES
    member_table.SEGMENT_BYTES = 200 * MEMBER_DTYPE.itemsize
    generation_table.SEGMENT_BYTES = 16 * GENERATION_DTYPE.itemsize
    try:
        run = make_run(folder, generations=40, members=20)
    finally:
        member_table.SEGMENT_BYTES, generation_table.SEGMENT_BYTES = sizes
    assert run.segments
    assert run.generation_segments
    return RunFile.open(run.path)


def model_folder(folder: Path) -> Path:
    """Copy the model that comes with esmpi; return the folder."""
    tiny = Path(shipped).parent / "assets" / "tiny_countdown"
    folder.mkdir(parents=True)
    for file in tiny.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    return folder


def small_model(folder: Path, shards: int) -> Path:
    """Write a model of two matrices in one file or two, with an index; return the folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    names = ("model.embed_tokens.weight", "model.norm.weight")
    tensors = {name: np.ones((4, 4), np.float32) for name in names}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(names, 1)}
    for name, file in files.items():
        save_file({name: tensors[name]}, folder / file)
    index = {"metadata": {"total_size": 128}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter_folder(folder: Path) -> Path:
    """Write a folder with a model and a LoRA adapter; return it."""
    from safetensors.numpy import save_file

    small_model(folder, shards=1)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "x",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    names = ("lora_A", "lora_B")
    adapter = {
        f"base_model.model.model.layers.0.self_attn.q_proj.{name}.weight": np.ones((2, 4), "f4") for name in names
    }
    save_file(adapter, folder / "adapter_model.safetensors")
    return folder


def section_of(name: str, **keys: Any) -> Any:
    """Return the section `task` of a config."""
    return parse_config({**CONFIG, "task": {"name": name, **keys}}).task
