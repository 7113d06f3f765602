"""Our own server: every hole that a flag opens is found, and none without."""

from functools import cache

import pytest
from served import app_of, serving
from stub import Chatty

import midward
from midward.audit.audit import audit
from midward.audit.config import AuditConfig
from midward.sampling import Sampling

RESEARCH = {"forced", "bans", "edits", "fill", "ends", "score", "gradient", "tokenizer"}


@pytest.fixture(scope="module")
def model(lively_folder):
    return midward.load(lively_folder, device="cpu", dtype="float32")


def audit_of(model, **config):
    with serving(app_of(model, None, Sampling.for_model(model, length=32, steps=8), **config)) as url:
        return audit(url, AuditConfig(rate=1e6))


@pytest.fixture(scope="module")
def summaries(model):
    """Of each setting once."""
    return cache(lambda *config: audit_of(model, **dict(config)))


@pytest.mark.parametrize(
    "config, holes",
    [
        ({}, set()),
        ({"masks": "strip"}, set()),
        ({"allow_prefill": True}, {"prefill"}),
        ({"research": True}, RESEARCH),
        ({"research": True, "masks": "allow", "allow_prefill": True}, {*RESEARCH, "masks", "controls", "prefill"}),
    ],
)
def test_what_a_flag_opens_is_found_and_nothing_else(summaries, config, holes):
    summary = summaries(*config.items())
    assert {*summary["holes"]} == holes and not summary["unclear"] and not summary["broke"]
    assert summary["requests"] <= 74


def test_the_research_mode_makes_every_attack_possible(summaries):
    summary = summaries(("research", True))
    assert {attack["possible"] for attack in summary["attacks"].values()} == {"chat", "whole"}
    assert summary["attacks"]["dija"]["by"] == ["fill"]
    assert {*summary["capabilities"]} == {"CHAT", "SYS", "HIST", "N", "POS", "BAN", "PMASK", "EDIT", "SLP", "GRAD"}


def test_a_server_of_another_kind_is_not_asked_for_our_fields(audited):
    endpoint = Chatty(refuses=False)
    audited(endpoint)
    assert not [request for request in endpoint.requests if b"midward" in request.content]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sandbox", "sandbox-ar", "sandbox-block"])
def test_the_sandbox_is_closed_unless_it_is_opened(name):
    model = midward.load(name, device="cpu")
    assert audit_of(model)["verdict"] == "closed"
    assert {*audit_of(model, research=True)["holes"]} >= {"forced", "bans", "score", "gradient"}
