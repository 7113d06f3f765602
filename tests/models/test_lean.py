"""What a run doesn't use it neither imports nor prints."""

import subprocess
import sys

import pytest
from checkpoints import lora

OPTIONAL = "bitsandbytes datasets lm_eval openai pandas playwright pyarrow sklearn"

PLAIN = """
import sys
import midward
folder, adapter, optional = sys.argv[1:]
model = midward.load(folder, adapter=adapter, device="cpu")
model.generate("t40 t41", length=8)
print(*set(optional.split()) & set(sys.modules))
"""

QUANTISED = """
model = midward.load(folder, adapter=adapter, device="cpu", quantize="4bit")
layer = model.causal_lm.model.layers[0].self_attn.q_proj
print(type(layer).__module__, type(layer).__name__)
"""


@pytest.fixture
def adapter(llada, tmp_path):
    return lora(llada, tmp_path / "adapter")


def run(program, folder, adapter):
    words = [sys.executable, "-c", program, str(folder), str(adapter), OPTIONAL]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n"), done.stderr


def test_a_plain_run_imports_and_prints_nothing_optional(llada_folder, adapter):
    lines, errors = run(PLAIN, llada_folder, adapter)
    assert lines == ["", ""] and errors == ""


def test_an_adapter_still_goes_on_a_quantised_base_afterwards(llada_folder, adapter):
    pytest.importorskip("bitsandbytes")
    lines, errors = run(PLAIN + QUANTISED, llada_folder, adapter)
    assert "kernels" not in errors and lines[1] == "peft.tuners.lora.bnb Linear4bit"
