"""The model card: what the Hub reads of it, whose method it says, and names that are markup."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from midward.alignment import AlignError, resolve
from midward.alignment.card import REGION, card, check_license
from midward.alignment.methods import METHODS

HOSTILE = "a`b\n---\n# <img src=x> [x](http://t) | *y* `````\nlicense: mit"


def record(model="org/base", **settings):
    counts = {"prompts": 3, "hash": "0a1b"}
    return {
        "model": model,
        "model_fingerprint": "f0",
        "config": resolve(settings).to_dict(),
        "data": counts,
        "benign": counts,
        "sentences": None,
        "steps": 7,
        "versions": {"midward": "0.1.0"},
    }


def of(license="unknown", **settings):
    made = record(**settings)
    return card(made, METHODS[made["config"]["method"]], license)


def test_the_hub_reads_base_library_licence_and_data_by_hash():
    data = ModelCard(of(license="apache-2.0")).data.to_dict()
    assert (data["base_model"], data["library_name"], data["license"]) == ("org/base", "peft", "apache-2.0")
    assert "mosa" in data["tags"] and data["training_method"] == "ours"
    counts = {"prompts": 3, "hash": "0a1b"}
    assert data["training_data"] == [{"name": name, **counts} for name in ("harmful prompts", "benign prompts")]
    assert ModelCard(of(model="a folder")).data.base_model is None
    assert ModelCard(of()).data.license == "unknown"


@pytest.mark.parametrize(
    "settings, published",
    [
        ({}, False),
        ({"recipe": "published"}, False),
        ({"recipe": "paper"}, True),
        ({"recipe": "paper", "batch_size": 8, "length": 96, "seed": 3, "micro_batch": 2}, True),
        ({"recipe": "paper", "lr": 1e-3}, False),
        ({"method": "initial", "recipe": "paper"}, True),
        ({"method": "a2d", "recipe": "paper"}, True),
        ({"method": "a2d", "recipe": "paper", "batch_size": 8}, False),
        ({"method": "ra", "recipe": "paper"}, False),
        ({"method": "sft", "recipe": "paper"}, False),
    ],
)
def test_only_the_papers_own_settings_are_as_published(settings, published):
    text = of(**settings)
    assert ModelCard(text).data.training_method == ("as published" if published else "ours")
    assert ("**as published**" in text) is published
    if "lr" in settings:
        assert "lr 0.001 (5e-05 there)" in text


def test_a_name_is_text_in_markdown_yaml_and_python():
    text = of(model=HOSTILE)
    read = ModelCard(text)
    assert read.data.license == "unknown" and read.data.base_model is None
    tokens = MarkdownIt("commonmark").enable("table").parse(read.text)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"image", "link_open", "html_inline"} & {*inline}
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [*REGION]
    [code] = [token.content for token in tokens if token.type == "fence"]
    literal = code.split("midward.load(")[1].split(", adapter=")[0]
    assert json.loads(literal) == HOSTILE
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2"]


def test_a_licence_is_named_as_the_hub_names_it():
    assert check_license("apache-2.0") == "apache-2.0"
    for name in ("", "MIT", "my licence", "a\nb: c", "-"):
        with pytest.raises(AlignError, match="isn't named as the Hub"):
            check_license(name)
    assert yaml.safe_load(of().split("---")[1])["license"] == "unknown"
