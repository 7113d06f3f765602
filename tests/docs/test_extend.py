"""docs/extend.md: each file is short (test_commands_run.py installs and runs them), and a broken family is told."""

import pytest
from doc_blocks import REPOSITORY, blocks
from packages import install

from midward.models import ModelError, families, load
from midward.models.loading import _PLUGINS

FILES = [block for block in blocks(REPOSITORY / "docs" / "extend.md") if block.language == "python" and block.title]


@pytest.mark.parametrize("block", FILES, ids=lambda block: block.title)
def test_a_whole_file_is_short(block):
    assert len(block.text.splitlines()) <= 60


@pytest.mark.parametrize(
    "source, why", [("INFO = 1", "has no family"), ("import nowhere", "can't be loaded: ModuleNotFoundError")]
)
def test_a_broken_family_is_told_where_it_might_be_meant(source, why, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "odd_family", source, "midward.families", odd="odd_family")
    with pytest.raises(ModelError, match=why):
        _PLUGINS.find("odd")
    assert "odd" not in {info.name for info in families()}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["OddModel"]}')
    with pytest.raises(ModelError, match=f"unknown architecture 'OddModel'.*odd-family.*{why}"):
        load(tmp_path / "model")
