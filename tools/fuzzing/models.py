"""The files of models that `tools/fuzz.py` fuzzes."""

import io
import json
import random
from pathlib import Path
from typing import Any

from esmpi.model.base_model import BaseModel, matrix_shape
from fuzzing.inputs import Make, Target, damaged, of_bytes, of_json
from fuzzing.samples import adapter_folder, example_run, model_folder, small_model


def _model_config(folder: Path) -> Target:
    model = model_folder(folder / "model")
    sample = json.loads((model / "config.json").read_bytes())

    def check(data: bytes) -> None:
        (model / "config.json").write_bytes(data)
        base = BaseModel(model)
        base.canonical_names()
        assert base.num_weights >= 0

    return Target(make=of_json(sample), check=check)


def _safetensors(folder: Path) -> Target:
    model = model_folder(folder / "model")
    path = model / "model.safetensors"
    sample = path.read_bytes()
    head = sample[: 8 + int.from_bytes(sample[:8], "little")]
    rest = sample[len(head) :]

    def check(data: bytes) -> None:
        path.write_bytes(data + rest)
        BaseModel(model)

    return Target(make=of_bytes(head), check=check)


def _small_safetensors(folder: Path) -> Target:
    """A header with odd values and the right length; the tensors that it has are read."""
    model = small_model(folder / "model", shards=1)
    path = next(model.glob("*.safetensors"))
    sample = path.read_bytes()
    size = int.from_bytes(sample[:8], "little")
    odd = of_json(json.loads(sample[8 : 8 + size]))

    def check(data: bytes) -> None:
        path.write_bytes(len(data).to_bytes(8, "little") + data + sample[8 + size :])
        _read_all(BaseModel(model))

    return Target(make=odd, check=check)


def _index(folder: Path) -> Target:
    """The index of a model in several files; a model that can be read is exported, too."""
    from esmpi.store.export import export

    model = small_model(folder / "model", shards=2)
    path = model / "model.safetensors.index.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        base = BaseModel(model)
        _read_all(base)
        theta = {name: base.read(name, (0, 4), (0, 4)) for name in base.tensors}
        export(base, theta, {}, folder / "out", "float32", {"generation": 0})

    return Target(make=of_json(json.loads(path.read_bytes())), check=check)


def _adapter(name: str) -> Make:
    """A folder of a LoRA adapter in the model's place, and one that has both; esmpi reads no adapters."""

    def make_target(folder: Path) -> Target:
        model = adapter_folder(folder / "model")
        path = model / name
        sample = path.read_bytes()

        def check(data: bytes) -> None:
            path.write_bytes(data)
            _read_all(BaseModel(model))

        return Target(make=of_json(json.loads(sample)) if name.endswith("json") else of_bytes(sample), check=check)

    return make_target


def _card(name: str) -> Make:
    """Files of a base model that an export reads for its card."""

    def make_target(folder: Path) -> Target:
        from esmpi.report import card

        run = example_run(folder / "run")
        model = small_model(folder / "model", shards=1)
        base = BaseModel(model)
        samples: dict[str, Any] = {
            "README.md": b"---\nlicense: mit\nlicense_link: 'x'\ntags:\n- a\n---\n# Model\n",
            "generation_config.json": {"eos_token_id": 1, "temperature": 0.5},
        }
        sample = samples[name]
        plain = of_json(sample) if isinstance(sample, dict) else of_bytes(sample)

        def make(rng: random.Random) -> bytes:
            if rng.random() < 0.9:
                return plain(rng)
            return b"---\n" + rng.choice((b"\n", b" ", b"a: b\n", b"--", b"license: \n")) * rng.choice((1000, 100_000))

        def check(data: bytes) -> None:
            (model / name).write_bytes(data)
            card.model_card(run, run.num_generations, base)
            card.generation_config(run, base)

        return Target(make=make, check=check)

    return make_target


def _checkpoint(folder: Path) -> Target:
    """A .pth file with odd objects, or with damaged bytes."""
    import torch

    from esmpi.store.state_dict import read_state_dict

    base = BaseModel(small_model(folder / "model", shards=1))
    path = folder / "x.pth"
    odd: list[Any] = [
        *(torch.tensor(1.0), torch.ones(0), torch.ones(4), torch.ones(4, 4, dtype=torch.int8), None, "x", 5, {}, []),
        *(torch.ones(4, 4).to_sparse(), torch.ones(4, 4, dtype=torch.complex64), torch.ones(1).expand(2**20, 2**20)),
        *(torch.ones(4, 4, device="meta"), torch.ones(12, 4), torch.full((4, 4), float("nan")), torch.ones(2**16, 4)),
        torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    ]
    names = (
        *base.tensors,
        "model.layers.0.self_attn.qkv_proj.weight",
        "",
        5,
        None,
        "module.x",
        "model.embed_tokens.weight",
    )

    def make(rng: random.Random) -> bytes:
        tree: Any = {name: torch.ones(4, 4) for name in base.tensors}
        kind = rng.random()
        if kind < 0.6:
            tree[rng.choice(names)] = rng.choice(odd)
        elif kind < 0.65:
            tree = rng.choice(odd)
        file = io.BytesIO()
        torch.save(tree, file, _use_new_zipfile_serialization=rng.random() < 0.7)
        return damaged(file.getvalue(), rng) if kind > 0.65 else file.getvalue()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_state_dict(path, base)

    return Target(make=make, check=check)


TARGETS: dict[str, Make] = {
    "config.json": _model_config,
    "model.safetensors": _safetensors,
    "header of safetensors": _small_safetensors,
    "index of safetensors": _index,
    "adapter_config.json": _adapter("adapter_config.json"),
    "adapter_model.safetensors": _adapter("adapter_model.safetensors"),
    "README of a model": _card("README.md"),
    "generation_config.json": _card("generation_config.json"),
    "checkpoint": _checkpoint,
}


def _read_all(base: BaseModel) -> None:
    for name, tensor in base.tensors.items():
        rows, columns = matrix_shape(tensor.shape)
        base.read(name, (0, rows), (0, columns))
