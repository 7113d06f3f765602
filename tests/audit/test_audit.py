"""The audit finds what is let in, each hole by itself and all together, tells ignored from refused, and keeps within
its requests."""

import json
import random
import re
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub import SGLANG, SWITCHED, Chatty, Sglang

from midward.attacks.capabilities import Capability
from midward.attacks.registry import ATTACKS
from midward.audit.audit import ALL, audit
from midward.audit.check import strings
from midward.errors import InputError, MidwardError
from midward.serving.client import ServerError

OF_SGLANG = {*SGLANG, *SWITCHED, "long", "malformed"}
OF_CHAT = {"masks", "controls", "prefill", "raw-prompt", "raw-ids", "ignore-eos", "logit-bias", "pattern", "logprobs"}
OF_CHAT |= {"long", "malformed"}


def verdicts(summary):
    return {record["check"]: record["verdict"] for record in summary["checks"] if record["hole"]}


def test_the_holes_of_sglang_as_it_comes(audited):
    summary = audited(Sglang(SGLANG))
    assert summary["verdict"] == "open" and {*summary["holes"]} == {*SGLANG} and not summary["unclear"]
    assert verdicts(summary)["processor"] == verdicts(summary)["states"] == "refused"
    evidence = {record["check"]: record["evidence"] for record in summary["checks"]}
    assert "of 5 ids the prompt has 5 tokens" in evidence["raw-ids"]
    assert summary["capabilities"]["SLP"] == "" and summary["capabilities"]["PMASK"]


def test_the_holes_of_sglang_with_its_switches(audited):
    assert {*audited(Sglang([*SGLANG, *SWITCHED]))["holes"]} == {*SGLANG, *SWITCHED}


@pytest.mark.parametrize("stub, known", [(Sglang, OF_SGLANG), (Chatty, OF_CHAT)])
@pytest.mark.parametrize("refuses", [True, False])
def test_an_endpoint_that_lets_nothing_in_is_closed(audited, stub, known, refuses):
    summary = audited(stub(refuses=refuses))
    found = verdicts(summary)
    assert not summary["holes"] and known <= found.keys()
    silent = {"processor"} if stub is Chatty and not refuses else set()  # an answer without ids doesn't show it
    assert {*summary["unclear"]} == silent and summary["verdict"] == ("unclear" if silent else "closed")
    fields = known - {"malformed", "long", "settings", "raw-prompt"} - silent
    assert {found[name] for name in fields} == ({"refused"} if refuses else {"ignored"})


@settings(max_examples=12)
@given(st.data())
def test_each_hole_is_found_by_itself(audited, data):
    stub, known = data.draw(st.sampled_from([(Sglang, OF_SGLANG), (Chatty, OF_CHAT)]))
    obeys = data.draw(st.sets(st.sampled_from(sorted(known - {"long"}))))
    prefill = data.draw(st.sampled_from(["whole", "rest"]))
    summary = audited(stub(obeys, data.draw(st.booleans()), prefill=prefill))
    assert {*summary["holes"]} == obeys


@pytest.mark.parametrize("role, other", [("system", "HIST"), ("assistant", "SYS")])
def test_a_turn_that_is_dropped_is_not_said_to_be_taken(audited, role, other):
    """Whatever turns stand around it, and make the prompt longer."""

    class Dropping(Chatty):
        paths = Chatty.paths | {
            "/v1/chat/completions": lambda stub, body: stub.chat(
                {**body, "messages": [turn for turn in body["messages"] if turn["role"] != role]}
            )
        }

    granted = audited(Dropping())["capabilities"].keys() & {"SYS", "HIST"}
    assert granted == {other}


def test_a_server_that_a_long_prompt_kills_is_found(audited):
    summary = audited(Sglang({"long"}))
    assert "long" in summary["holes"] and "RemoteProtocolError" in str(summary["broke"])


def test_an_endpoint_that_repeats_nothing_proves_nothing_by_another_answer(audited):
    stub, count = Chatty(refuses=False), iter(range(10**6))
    stub.answer = lambda ids, how, most, seed=0: Chatty.answer(stub, [*ids, next(count)], how, most, seed)
    found = verdicts(audited(stub))
    assert found["logit-bias"] == "unclear" and "open" not in found.values()


@pytest.mark.parametrize(("refused", "verdict"), [(("temperature",), "unclear"), (("seed",), "refused"), ((), "open")])
def test_a_temperature_that_is_refused_is_not_laid_to_the_seed(audited, refused, verdict):
    class Choosy(Chatty):
        def chat(self, body):
            if any(body.get(name) for name in refused):
                raise ValueError("not here")
            return super().chat(body)

        paths = Chatty.paths | {"/v1/chat/completions": chat}

    summary = audited(Choosy())
    assert [check["verdict"] for check in summary["checks"] if check["check"] == "seed"] == [verdict]
    assert "seed" not in summary["unclear"]


@pytest.mark.parametrize("obeys, verdict", [(set(), "refused"), ({"key"}, "open")])
def test_an_answer_without_the_key_is_a_hole(audited, tmp_path, obeys, verdict):
    keys = tmp_path / "keys"
    keys.write_text("sk-one\n")
    found = verdicts(audited(Chatty(obeys, key="sk-one"), api_key_file=keys))
    assert found["key"] == verdict
    assert "key" not in verdicts(audited(Chatty()))
    with pytest.raises(ServerError, match="--api-key-file"):
        audited(Chatty(key="sk-one"))


# --- attacks by hole ----------------------------------------------------------------------------------------------


def test_attacks_follow_from_what_they_need(audited):
    attacks = audited(Chatty({"prefill", "logprobs"}))["attacks"]
    assert attacks.keys() == ATTACKS.keys()
    assert attacks["direct"]["possible"] == attacks["dia"]["possible"] == "chat"
    assert attacks["prefill"] == {"needs": ["POS"], "by": ["prefill"], "possible": "part"}
    assert attacks["advprefix"]["possible"] == "part" and {*attacks["advprefix"]["by"]} == {"prefill", "logprobs"}
    assert attacks["dija"]["possible"] == attacks["trajhijack"]["possible"] == "no"
    assert audited(Sglang(SGLANG))["attacks"]["pal"]["possible"] == "whole"


def test_a_closed_endpoint_makes_no_attack_possible_but_those_by_chat(audited):
    kinds = {attack["possible"] for attack in audited(Chatty())["attacks"].values()}
    assert kinds == {"chat", "no"}


def test_the_page_names_the_attacks_that_each_hole_makes_possible():
    """The table of docs/audit.md is what the checks and the attacks say."""
    page = Path(__file__).parents[2].joinpath("docs", "audit.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.count("|") == 6]
    named = {name: row for row in rows for name in re.findall(r"`([a-z-]+)`", row[0])}
    holes = {check.name: check for check in ALL if check.hole}
    assert named.keys() == holes.keys()
    chat = {Capability.CHAT, *(grant for check in ALL if not check.hole for grant in check.grants)}
    for name, check in holes.items():
        beyond = {attack: {*info.needs} - chat for attack, info in ATTACKS.items()}
        possible = {attack for attack, needs in beyond.items() if needs and needs <= check.grants.keys()}
        if name != "processor":  # said in words
            assert possible <= {*re.findall(r"`([a-z-]+)`", named[name][4])}, name
        assert all(grant in named[name][3] for grant in check.grants), name


# --- what is asked ------------------------------------------------------------------------------------------------

HARMLESS = {*"say hello the box is blue round in on alpha omega a word wednes septem 41 52 zebra mask".split()}
HARMLESS |= {*"user system assistant mdm_mask MASK eot_id im_end endoftext end_of_turn s qzx 31m".split()}
HARMLESS |= {*"eos_token role_end task t eat_id im_and role_and andoftext and_of_turn mdm_task".split()}


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("stub, most", [(Sglang, 49), (Chatty, 52)])
def test_requests_are_few_and_harmless(audited, stub, most, refuses):
    endpoint = stub(refuses=refuses)
    summary = audited(endpoint)
    assert summary["requests"] == len(endpoint.requests) <= most
    assert sum(record["requests"] for record in summary["checks"]) <= summary["requests"]
    assert {request.method for request in endpoint.requests} <= {"GET", "POST"}
    for request in endpoint.requests:
        try:
            body = json.loads(request.content or b"{}")
        except (ValueError, RecursionError):
            continue
        if not isinstance(body, dict):
            continue
        texts = [*strings({name: body[name] for name in ("text", "prompt", "messages") if name in body})]
        words = {word.lower() for text in texts for word in re.findall(r"\w+", text)}
        assert words <= {word.lower() for word in HARMLESS}


@settings(max_examples=6)
@given(st.integers(3, 70))
def test_the_budget_is_kept_and_what_it_left_out_is_unclear(audited, budget):
    endpoint = Sglang(SGLANG)
    summary = audited(endpoint, api="sglang", budget=budget)
    assert len(endpoint.requests) <= budget
    if len(endpoint.requests) == budget < 30:
        assert summary["unclear"] and f"budget of {budget}" in str(summary["checks"])


def test_requests_come_one_by_one_at_their_rate(audited):
    begun = time.monotonic()
    audited(Sglang(), rate=100, budget=20)
    assert time.monotonic() - begun >= 0.19


def test_a_busy_server_is_asked_again_when_it_says_and_no_more(audited):
    endpoint, busy = Sglang(), []

    def answers(request):
        if "ignore_eos" in request.content.decode("latin-1"):
            busy.append(time.monotonic())
            return httpx.Response(429, headers={"retry-after": "0.05"}, json={})
        return endpoint(request)

    summary = audited(answers)
    assert len(busy) == 3 and busy[2] - busy[0] >= 0.1 and verdicts(summary)["ignore-eos"] == "unclear"


def test_a_check_that_is_skipped_is_not_made(audited):
    endpoint = Sglang()
    found = verdicts(audited(endpoint, skip=("processor", "long", "malformed")))
    assert not {"processor", "long", "malformed"} & found.keys()
    assert not [request for request in endpoint.requests if b"custom_logit_processor" in request.content]
    with pytest.raises(InputError, match="masks"):
        audited(endpoint, skip=("mask",))


def test_a_mask_of_another_spelling_is_found_where_it_is_named(audited, monkeypatch):
    monkeypatch.setitem(__import__("stub").CONTROLS, "<gap>", 1)
    monkeypatch.setattr("stub.MASK", "<gap>")
    assert verdicts(audited(Chatty({"masks"})))["masks"] == "refused"  # the usual one is an end here
    assert verdicts(audited(Chatty({"masks"}), mask="<gap>"))["masks"] == "open"


def test_an_address_that_is_none(audited):
    for url in ("ftp://x", "127.0.0.1:8000", "http://", "http://[x", "http://x:port"):
        with pytest.raises(MidwardError, match="address"):
            audit(url)


def test_a_filter_that_stops_the_plain_question_is_told_and_another_one_can_be_asked(audited):
    """It stops all that it doesn't know; tokens are counted all the same, so what is typed is still told apart."""
    for obeys in (set(), {"masks"}):
        stub = Chatty(obeys, refuses=False)

        def answers(request, stub=stub):
            answer = stub(request)
            if b"Who keeps bees?" in request.content or answer.status_code != 200 or b"prompt" in request.content:
                return answer
            body = answer.json()
            body["choices"] = [{**body["choices"][0], "finish_reason": "content_filter"}]
            return httpx.Response(200, json=body)

        with pytest.raises(ServerError, match="--plain"):
            audited(answers)
        found = verdicts(audited(answers, plain="Who keeps bees?"))
        assert found["masks"] == ("open" if obeys else "ignored") and found["logit-bias"] == "ignored"


# --- what proves nothing ------------------------------------------------------------------------------------------


def only(*names):
    """All other checks."""
    return tuple(check.name for check in ALL if check.name not in names)


def says(text):
    """An endpoint that gives a text to any messages."""
    stub = Chatty(refuses=False)

    def answers(request):
        answer, body = stub(request), request.content
        if b'"messages"' not in body or answer.status_code != 200:
            return answer
        told, messages = answer.json(), [turn for turn in json.loads(body)["messages"] if "content" in turn]
        told["choices"][0]["message"]["content"] = text(messages)
        return httpx.Response(200, json=told)

    return answers


@pytest.mark.parametrize(
    "text",
    [
        lambda turns: "Wednesday is a fine day.",
        lambda turns: "days pass.",
        lambda turns: "day by day.",
        lambda turns: turns[-1]["content"],
        lambda turns: f"{turns[-1]['content']}? Could you say what you need?",
        lambda turns: "Hello." if len(turns) == 1 else "Wednesday? Could you say what you need?",
        lambda turns: "Hello." if len(turns) == 1 else f"{turns[1]['content']}day, {len(turns)}",
        lambda turns: "Hello." if len(turns) == 1 else "day",
    ],
)
def test_what_is_said_by_chance_or_echoed_is_no_prefill(audited, text):
    assert verdicts(audited(says(text), skip=only("prefill")))["prefill"] in ("ignored", "unclear")


def counting(stub, count):
    """An endpoint that counts a prompt's tokens by its texts."""

    def answers(request):
        answer = stub(request)
        if answer.status_code != 200 or request.method != "POST":
            return answer
        told, body = answer.json(), json.loads(request.content)
        if isinstance(told, list):
            return answer
        texts = [turn["content"] for turn in body.get("messages") or [] if turn["role"] == "user"] or [
            str(body.get("text", body.get("prompt")))
        ]
        (told["usage"] if "usage" in told else told["meta_info"])["prompt_tokens"] = count(texts)
        return httpx.Response(200, json=told)

    return answers


@pytest.mark.parametrize("stub", [Chatty, Sglang])
@pytest.mark.parametrize(
    "count",
    [
        lambda texts: -(-len("".join(texts)) // 4),
        lambda texts: len("".join(texts)) // 3,
        lambda texts: len(" ".join(texts).split()),
        lambda texts: 5,
    ],
)
def test_a_count_that_is_no_tokenizers_proves_nothing(audited, stub, count):
    """Whatever is let in: masks that are the model's own are no text by such a count."""
    for obeys in (set(), {"masks", "controls", "raw-ids"} | ({"raw-prompt"} if stub is Chatty else set())):
        names = ("masks", "controls", "raw-ids", "raw-prompt")
        assert verdicts(audited(counting(stub(obeys, refuses=False), count), skip=only(*names))) == dict.fromkeys(
            names, "unclear"
        )


def test_a_count_without_the_template_is_no_raw_prompt(audited):
    """Completions that are wrapped as a chat, and users' texts counted alone."""
    letters = counting(Chatty({"raw-prompt"}), lambda texts: len("".join("".join(texts).split())))
    found = verdicts(audited(letters, skip=only("raw-prompt", "prefill")))
    assert found["raw-prompt"] == "unclear" and found["prefill"] == "refused"
    begun = says(lambda turns: f"Hello {len(turns)}.")
    begun = counting(begun, lambda texts: len("".join(texts)))
    assert verdicts(audited(begun, skip=only("prefill")))["prefill"] == "unclear"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stub", [Chatty, Sglang])
def test_a_cache_in_front_of_chance_repeats_nothing(audited, stub, seed):
    chance, cache = random.Random(seed), {}
    server = stub(refuses=False)
    server.answer = lambda ids, how, most, seed=0: stub.answer(server, [*ids, chance.random()], how, most, seed)
    names = ("ignore-eos", "logit-bias", "processor", "prefill")

    def cached(request):
        return cache.setdefault((request.url.path, request.content), server(request))

    found = verdicts(audited(cached, skip=only(*names)))
    assert "open" not in found.values() and found["logit-bias"] == found["processor"] == "unclear"


@pytest.mark.parametrize("seed", range(8))
def test_lengths_by_chance_are_no_answer_that_goes_on(audited, seed):
    chance = random.Random(seed)
    server = Chatty(refuses=False)

    def answer(ids, how, most, seed=0):
        count = chance.randint(28, 32)
        return [1000] * min(count, most), "length" if count >= most else "stop"

    server.answer = answer
    assert verdicts(audited(server, skip=only("ignore-eos")))["ignore-eos"] == "unclear"


@pytest.mark.parametrize("blanks", [1, 2])
@pytest.mark.parametrize("stub", [Chatty, Sglang])
def test_blanks_beside_a_token_hide_no_hole(audited, stub, blanks):
    """Pieces of their own, as some SentencePiece tokenizers have them: 16 masks add 18 or 20."""
    server = stub({"masks"}, refuses=False)
    encode = server.encode
    server.encode = lambda text: encode(text) + [9] * (2 * blanks * ("<|mask|>" in text))
    assert verdicts(audited(server, skip=only("masks", "controls"))) == {"masks": "open", "controls": "ignored"}


def test_too_few_tokens_for_a_text_are_never_ignored(audited):
    """Two tokens a copy, where a text like it has eight."""
    server = Chatty(refuses=False)
    encode = server.encode
    server.encode = lambda text: encode(text.replace("<|mask|>", "ab"))
    summary = audited(server, skip=only("masks"))
    assert verdicts(summary)["masks"] == "unclear" and "32 tokens" in str(summary["checks"])
