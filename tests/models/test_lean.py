"""What a run doesn't use it neither imports nor prints."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from checkpoints import lora

import midward

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
print("then", file=sys.stderr)
model = midward.load(folder, adapter=adapter, device="cpu", quantize="4bit")
layer = model.causal_lm.model.layers[0].self_attn.q_proj
print(type(layer).__module__, type(layer).__name__)
"""


@pytest.fixture(scope="module")
def ran(llada_folder, tmp_path_factory):
    """What a plain run prints, and what one of a quantised base in the same process does: (stdout, stderr) of each."""
    llada = midward.load(llada_folder, device="cpu", dtype="float32")
    adapter = lora(llada, tmp_path_factory.mktemp("lean") / "adapter")
    quantised = QUANTISED if find_spec("bitsandbytes") else ""
    words = [sys.executable, "-c", PLAIN + quantised, str(llada_folder), str(adapter), OPTIONAL]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (plain, _, more), (errors, _, later) = done.stdout.partition("\n"), done.stderr.partition("then\n")
    return (plain, errors), (more, later)


def test_a_plain_run_imports_and_prints_nothing_optional(ran):
    assert ran[0] == ("", "")


def test_an_adapter_still_goes_on_a_quantised_base_afterwards(ran):
    pytest.importorskip("bitsandbytes")
    more, errors = ran[1]
    assert "kernels" not in errors and more == "peft.tuners.lora.bnb Linear4bit\n"
