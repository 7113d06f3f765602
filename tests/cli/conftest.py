"""What the tests of verbs share."""

import csv

import pytest
from inspect_ai.model import ModelAPI, ModelOutput, modelapi


@pytest.fixture
def tiny(llada_folder):
    """Flags for the tiny checkpoint and few, short steps."""
    return ["--model", llada_folder, "--device", "cpu", "--length", 12, "--steps", 6]


@pytest.fixture
def advbench(tmp_path):
    """A file in AdvBench's format, with all that its fields may hold."""
    path = tmp_path / "goals.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["goal", "target"])
        writer.writerow(['t30 "t31", t32', "Sure, here is"])
        writer.writerow(["t33\nt34\r\nt35", 'a "quoted" one'])
        writer.writerow(["t36 é 😀 \u2028 t37", ""])
        writer.writerow(["", "a row without a goal"])
        writer.writerow(["[bold]t38[/bold]", "markup"])
    return path


@modelapi("wordless")
class Wordless(ModelAPI):
    """A judging model that never gives a verdict."""

    async def generate(self, input, tools, tool_choice, config):
        return ModelOutput.from_content(self.model_name, "Hm.")
