"""Whatever is sent, the server answers or refuses, and never fails: random bodies, and cases made from its own
OpenAPI document."""

import asyncio
import json
import random

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from served import app_of, left_nothing, through

import midward
from midward.sampling import Sampling


@pytest.fixture(scope="module")
def app(llada_folder):
    model = midward.load(llada_folder, device="cpu")
    sampling = Sampling.for_model(model, length=4, steps=2)
    return app_of(model, None, sampling, max_tokens=4, max_cost=500, max_waiting=4096)


# --- from the OpenAPI document ------------------------------------------------------------------------------------


def cases(app, count):
    """Ask as many of each operation, valid and invalid; the number of cases."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    wanted = [checks.not_a_server_error, *of_responses()]
    asked = 0
    operations = [operation.ok() for operation in schema.get_all_operations()]
    for operation in operations:
        posts = operation.method.upper() == "POST"
        for mode in schemathesis.GenerationMode if posts else [schemathesis.GenerationMode.POSITIVE]:
            share = count if posts else 2

            @settings(max_examples=share, phases=[Phase.generate], database=None, suppress_health_check=[*HealthCheck])
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case):
                nonlocal asked
                response = case.call(headers={"host": "127.0.0.1"})
                asked += 1
                case.validate_response(response, checks=wanted)

            ask()
    return asked


def of_responses():
    from schemathesis.specs.openapi import checks as openapi

    return [*(openapi.status_code_conformance, openapi.content_type_conformance), openapi.response_schema_conformance]


def test_no_case_of_the_openapi_document_is_a_server_error(app):
    assert cases(app, 15) > 30


@pytest.mark.slow
def test_two_thousand_cases_of_the_openapi_document(app):
    assert cases(app, 1200) >= 2000


# --- random bodies ------------------------------------------------------------------------------------------------

VALUES = [
    *(None, True, 0, 1, -1, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 0.5, "", "x", "\x00", "\ud7ff", "é€😀" * 9),
    *([], {}, [[]], [{}], [None], {"": None}, "<|mdm_mask|>", "t30 t31", "llada-tiny", ["a"] * 5, {"type": "text"}),
    *([{"role": "user", "content": "t30"}], {"sampling": {}}, {"sampling": {"steps": 2}}, "1" * 5000, 2, 3, 4),
]
NAMES = [
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "n", "stop", "stream"),
    *("stream_options", "midward", "top_p", "tools", "logprobs", "user", "odd", "", "sampling", "role", "content"),
    *("type", "text", "steps", "block", "threshold", "order", "guidance", "cache", "schedule", "include_usage", "name"),
]


def body_of(draw):
    """A body that is well-formed, nearly so, or nothing of the kind."""
    body = {"model": "llada-tiny", "messages": [{"role": "user", "content": "t30 t31"}], "max_tokens": 2}
    for _ in range(draw.randrange(4)):
        place = body
        while draw.random() < 0.4 and place:
            deeper = place[draw.choice([*place])] if isinstance(place, dict) else place[draw.randrange(len(place))]
            if not isinstance(deeper, dict | list) or not deeper:
                break
            place = deeper
        name = draw.choice(NAMES) if isinstance(place, dict) else draw.randrange(len(place))
        place[name] = json.loads(json.dumps(draw.choice(VALUES)))
    content = bytearray(json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice([0, 0, 0, 1, 5])):
        at = draw.randrange(len(content))
        content[at : at + draw.randrange(3)] = draw.choice([b"", b"\xff", b"{", b'"', b"\\ud800", b"9", b"\x00", b"]"])
    return bytes(content)


def hostile(app, count):
    """Statuses of random bodies."""
    draw = random.Random(0)
    statuses: dict[int, int] = {}

    async def talk(client):
        headers = {"content-type": "application/json"}
        for _ in range(count // 20):
            bodies = [body_of(draw) for _ in range(20)]
            asked = [client.post("/v1/chat/completions", content=body, headers=headers) for body in bodies]
            for body, response in zip(bodies, await asyncio.gather(*asked), strict=True):
                assert response.status_code < 500, (body, response.text)
                error = response.status_code != 200
                assert not error or response.json()["error"]["message"]
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1

    through(app, talk)
    left_nothing(app)
    return statuses


def test_random_bodies_are_answered_or_refused(app):
    statuses = hostile(app, 1000)
    assert statuses[200] > 50 and statuses[400] > 300


@pytest.mark.slow
def test_ten_thousand_random_bodies(app):
    assert sum(hostile(app, 10_000).values()) == 10_000
