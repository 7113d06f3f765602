"""Tiny checkpoints and the verbs, for every room's tests."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network

from pathlib import Path

import pytest
from checkpoints import FIXTURES, random_causal, random_llada
from hypothesis import settings
from typer.testing import CliRunner

gc.disable()  # until all is collected: importing leaves nothing to pick up
settings.register_profile("midward", deadline=None)  # a busy machine is no fault
settings.load_profile("midward")


def pytest_collection_finish():
    """What is there now (modules, tests) stays to the end: no later search for garbage has to walk through it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _no_handler_is_left():
    """Ray's handler of SIGTERM would be that of every child that a later test forks, and lets some of them hang."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def llada_folder() -> Path:
    """The tiny checkpoint in the published LLaDA layout: 512 tokens, mask 2, end 1 and 3."""
    return FIXTURES / "llada-tiny"


@pytest.fixture
def llada(llada_folder):
    """A fresh model of the tiny checkpoint, float32 on the CPU."""
    import midward

    return midward.load(llada_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def lively_folder(tmp_path_factory) -> Path:
    """A LLaDA-layout checkpoint whose large random weights make every token depend on all the others."""
    sizes = {"hidden_size": 48, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 64, "max_length": 256}
    return random_llada(tmp_path_factory.mktemp("lively"), 11, **sizes)


@pytest.fixture
def lively(lively_folder):
    """A fresh model of the lively checkpoint, float32 on the CPU."""
    import midward

    return midward.load(lively_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A tiny random Llama (autoregressive) with the same tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "initializer_range": 0.3}
    return random_causal(tmp_path_factory.mktemp("llama-tiny"), "llama", max_position_embeddings=128, **sizes)


@pytest.fixture
def llama(llama_folder):
    """A fresh autoregressive model, float32 on the CPU."""
    import midward

    return midward.load(llama_folder, device="cpu", dtype="float32")


@pytest.fixture
def midward(monkeypatch):
    """Run `midward ARGS`; the result has exit_code, stdout and stderr. A traceback fails the test."""
    from midward.cli import app

    monkeypatch.setenv("COLUMNS", "200")  # or messages are broken into lines

    def run(*args, stdin=None):
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
