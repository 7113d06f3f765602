"""The checks that any endpoint is put to, in the order that they are made: what may break the server comes last."""

from __future__ import annotations

import json
import re
from typing import Any

from midward.attacks.capabilities import Capability
from midward.audit.check import UNSTABLE, Check, Outcome, Verdict, answered, by_change, declined, numbers, path_of
from midward.audit.dialects import LENGTH, Chat, Endpoint, Generate, Reply
from midward.audit.typed import UNCOUNTED, counted, end_outcome, mask_outcome
from midward.audit.wire import quote

#: Ids that every vocabulary has, and two that may be any pieces of a text.
IDS = [5, 6, 7, 8, 9]
PIECES = 1000, 1001
#: Beginnings that end within a word, and the rest of that word. No new answer begins so.
BEGUN = (("[41] The box is blue on Wednes", "day"), ("[52] The box is round in Septem", "ber"))
#: A word that no answer holds by chance.
WORD = "zebra"
#: SGLang's own processor that bans tokens, by its name, as its clients send it; no code of ours.
PROCESSOR = json.dumps(
    {"callable": b"csglang.srt.sampling.custom_logit_processor\nDisallowedTokensLogitsProcessor\n.".hex()}
)
_LONG = 200_000  # characters
_MORE = 8  # tokens
_TOLD = 5  # settings of a server that tells them


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


# --- what any chat endpoint gives ----------------------------------------------------------------------------------


def _taken(at: Chat, role: str, *before: tuple[str, str]) -> Outcome:
    """The outcome of a turn whose words the prompt grows with: that it grows by the turn says little, since a template
    may have one of its own there, and more turns stand around it."""
    short, long = (
        answered(at.ask(_turns(*before, (role, "The box is blue. " * times), ("user", at.question)))).prompt
        for times in (1, 4)
    )
    if short is None or long is None:
        return Outcome("unclear", "accepted; the answer doesn't count the prompt's tokens")
    words = f"of four times the words the prompt has {long - short} tokens more"
    return Outcome("open" if long > short else "ignored", words)


def system(at: Chat) -> Outcome:
    """Are system turns taken?"""
    return _taken(at, "system")


def history(at: Chat) -> Outcome:
    """Are the assistant's turns taken as the client writes them?"""
    return _taken(at, "assistant", ("user", at.question))


def choices(at: Endpoint) -> Outcome:
    """Are several answers given to one request?"""
    count = len(answered(at.ask(n=2)).texts)
    return Outcome("open" if count == 2 else "ignored", f"{count} answers of 2")


def seed(at: Endpoint) -> Outcome:
    """Does a seed repeat? Where no answer is drawn by chance, with a seed or without, nothing shows it."""
    drawn = at.ask(**at.drawn(7))
    if drawn.refused:
        unseeded = at.ask(**{name: value if name == "temperature" else None for name, value in at.drawn(7).items()})
        if unseeded.refused:
            why = unseeded.raw.trouble or "a content filter"
            return Outcome("unclear", f"at temperature 1 nothing is answered, with a seed or without: {why}")
    first = answered(drawn).texts
    again, other = (answered(at.ask(**at.drawn(seed))).texts for seed in (7, 8))
    if first != again:
        return Outcome("ignored", "accepted, and the same seed gives another answer")
    if first == other:
        return Outcome("unclear", "accepted; another seed gives the same answer")
    return Outcome("open", "the same seed repeats its answer, another seed gives another one")


# --- who may ask, and with what ------------------------------------------------------------------------------------


def key(at: Endpoint) -> Outcome | None:
    """Is it answered without the key that was given?"""
    if not at.wire.key:
        return None
    answered(at.read(at.wire.post(at.path, at.body(at.question), key=False)))
    return Outcome("open", "answered without the key")


def prefill(at: Chat) -> Outcome:
    """Is an answer that the client begins gone on with?"""
    outcome = _begun(at)
    if outcome.verdict == "open":
        return outcome
    asked = _begun(at, add_generation_prompt=False, continue_final_message=True)
    return asked if asked.verdict == "open" or outcome.verdict == "unclear" != asked.verdict else outcome


def _begun(at: Chat, **fields: Any) -> Outcome:
    begun, rest = BEGUN[0]
    reply = at.ask(_turns(("user", at.question), ("assistant", begun)), **fields)
    if lacking := declined(reply):
        return lacking
    if at.changed(reply) is False:
        return Outcome("ignored", "accepted, and the answer is the same")
    if first := _behind(reply, begun, rest):
        return _shown(at, first, **fields)
    if at.card and at.changed(reply) and reply.prompt == at.plain.prompt:  # a server of ours counts what it is asked
        return Outcome("open", f"counted as no part of the prompt, and the answer is another: {quote(reply.text)}")
    joined = at.known(f"{at.question} {begun}").prompt
    if reply.prompt is not None and joined is not None and reply.prompt - joined >= 2:
        return Outcome("ignored", "taken as an earlier turn, behind which a new answer begins")
    return Outcome("unclear", "accepted; nothing shows whether the answer goes on with it")


def _behind(reply: Reply, begun: str, rest: str) -> str:
    """What an answer that goes on with a beginning, repeated or not, has behind it; empty where it doesn't go on."""
    if reply.text.startswith(begun):
        return reply.text[len(begun) :].strip()
    return reply.text if re.match(rf"{rest}\b", reply.text) else ""


def _shown(at: Chat, first: str, **fields: Any) -> Outcome:
    """The outcome where an answer seems to go on: another beginning must be gone on with in another way, and the same
    words of the user's must not, which are no beginning."""
    begun, rest = BEGUN[1]
    other = _behind(at.ask(_turns(("user", at.question), ("assistant", begun)), **fields), begun, rest)
    begun, rest = BEGUN[0]
    echo = at.ask(_turns(("user", at.question), ("assistant", begun), ("user", begun)))
    plain = any(_behind(at.plain, *each) for each in BEGUN) or at.plain.text.strip() in (first, other)
    if not other or other == first or plain or not echo.answered or _behind(echo, begun, rest):
        return Outcome("unclear", f"the answer may go on with what was given, or repeat it: {quote(first)}")
    words = f"{quote(begun)} is gone on with by {quote(first, 30)}, {quote(BEGUN[1][0])} by {quote(other, 30)}"
    return Outcome("open", words)


def raw_prompt(at: Endpoint) -> Outcome:
    """Is a text taken with no chat template around it, so that its writer writes the assistant's turn too?"""
    if isinstance(at, Chat):
        reply = at.read(at.wire.post("/v1/completions", {**at.body(at.question, messages=None), "prompt": "a"}))
    else:
        reply = at.ask("a")
    prompt = answered(reply).prompt
    if prompt is None or not counted(at):
        return Outcome("unclear", f"answered; {UNCOUNTED}")
    few = prompt <= 3  # a letter, perhaps between a begin and an end; a turn has more around it
    words = f"a prompt of one letter has {prompt} tokens"
    if few and isinstance(at, Chat):
        turn = at.known("a").prompt
        if turn is None or turn - prompt < 2:
            return Outcome("unclear", f"{words}, and a chat's turn {turn}: a template isn't counted")
        words = f"{words}, and a chat's turn {turn}"
    return Outcome("open" if few else "ignored", words)


def raw_ids(at: Endpoint) -> Outcome:
    """Are a prompt's token ids taken?"""
    if isinstance(at, Generate):
        reply = at.ask(text=None, input_ids=IDS)
    else:
        reply = at.ask(input_ids=IDS, prompt_token_ids=IDS)
        if not reply.answered or reply.prompt != len(IDS):
            body = {**at.body(at.question, messages=None), "prompt": IDS}
            again = at.read(at.wire.post("/v1/completions", body))
            reply = again if again.answered else reply
    if answered(reply).prompt is None or not counted(at):
        return Outcome("unclear", f"accepted; {UNCOUNTED}")
    same = reply.prompt == len(IDS) and reply.prompt != at.plain.prompt
    return Outcome("open" if same else "ignored", f"of {len(IDS)} ids the prompt has {reply.prompt} tokens")


# --- how the answer is steered -------------------------------------------------------------------------------------


def ignore_eos(at: Endpoint) -> Outcome:
    """Does an answer go on behind its end?"""
    reply = answered(at.ask(ignore_eos=True))
    before, after = at.plain.written, reply.written
    if at.plain.finish == "length" or before is None or after is None:
        return Outcome("unclear", "accepted; the plain answer doesn't end by itself, or its tokens aren't counted")
    if not at.stable:
        return Outcome("unclear", f"accepted; {UNSTABLE}")
    if after == before:
        return Outcome("ignored", f"accepted, and the answer ends after {after} tokens as without")
    if at.limit and after == LENGTH > before:
        further: dict[str, Any] = {at.limit: LENGTH + _MORE}
        longer = at.ask(ignore_eos=True, **further)
        if (reply.finish, longer.finish, longer.written) == ("length", "length", LENGTH + _MORE):
            words = f"{after} and {longer.written} tokens, as many as are asked for, instead of {before}"
            return Outcome("open", f"{words}, which end by themselves")
    return Outcome("unclear", f"accepted; {after} tokens instead of {before}, and not always up to the length")


def logit_bias(at: Endpoint) -> Outcome:
    """Do biased tokens change the answer?"""
    replies = [at.ask(logit_bias={str(piece): 100}) for piece in PIECES]
    first, other = (_repeated(answered(reply).text) for reply in replies)
    if first and other and first != other:
        words = " and ".join(quote(reply.text, 30) for reply in replies)
        return Outcome("open", f"of each of two tokens nothing but itself: {words}")
    if all(at.changed(reply) is False for reply in replies):
        return Outcome("ignored", "accepted, and the answer is the same")
    return Outcome("unclear", f"accepted; no answer is one piece again and again: {quote(replies[0].text)}")


def _repeated(text: str) -> str:
    """The piece that a text is again and again; empty where it isn't."""
    text = text.strip()[:400]
    pieces = re.match(r"(.{1,24}?)\1{3,}", text, re.DOTALL)
    return pieces[1].strip() if pieces and pieces[1].startswith(text[pieces.end() :]) else ""


def logprobs(at: Endpoint) -> Outcome:
    """Are log-probabilities told?"""
    if isinstance(at, Generate):
        reply = at.ask(return_logprob=True, logprob_start_len=0, top_logprobs_num=2)
        given = _first(reply.raw.at("meta_info", "input_token_logprobs"))
        if reply.answered and given:
            all_of_it: dict[Capability, str] = {Capability.SLP: ""}
            return Outcome("open", f"of {len(given)} tokens of the prompt, which may be any text", all_of_it)
        written = _first(reply.raw.at("meta_info", "output_token_logprobs"))
    else:
        reply = at.ask(logprobs=True, top_logprobs=2)
        written = numbers(_named(reply.raw.body, "logprob"))
    if answered(reply) and written:
        return Outcome("open", f"{len(written)} of them, of the tokens that the model wrote")
    return Outcome("ignored", "accepted, and none is told")


def _first(entries: Any) -> list[float]:
    """The numbers that entries of SGLang's begin with: (log-probability, id, text)."""
    rows = entries if isinstance(entries, list) else []
    return numbers([row[0] for row in rows if isinstance(row, list) and row])


def _named(value: Any, name: str) -> list[Any]:
    """What stands under a name, anywhere in an answer."""
    if isinstance(value, dict):
        own = [value[name]] if name in value else []
        return own + [each for part in value.values() for each in _named(part, name)]
    return [each for part in value for each in _named(part, name)] if isinstance(value, list) else []


def pattern(at: Endpoint) -> Outcome:
    """Is an answer forced into a pattern that the client gives?"""
    if isinstance(at, Generate):
        reply, wanted = at.ask(regex=f"{WORD} {WORD}"), f"{WORD} {WORD}"
    else:
        schema = {"type": "object", "properties": {"word": {"enum": [WORD]}}, "required": ["word"]}
        named = {"name": "word", "schema": {**schema, "additionalProperties": False}, "strict": True}
        reply = at.ask(response_format={"type": "json_schema", "json_schema": named})
        wanted = f'{{"word":"{WORD}"}}'
    same = "".join(answered(reply).text.split()) == "".join(wanted.split())
    words = f"the answer is {quote(reply.text)}"
    return Outcome("open", words) if same else Outcome("ignored", f"accepted; {words}, which doesn't fit")


def processor(at: Endpoint) -> Outcome:
    """Is code that the client names run over the logits? The one that is named is SGLang's own."""
    banned = at.plain.ids[:1] or (IDS[0],)
    reply = answered(at.ask(custom_logit_processor=PROCESSOR, custom_params={"token_ids": list(banned)}))
    if not at.plain.ids:
        return Outcome("unclear", "accepted; whether it ran doesn't show, where an answer's ids aren't told")
    return by_change(at, reply)


# --- what is told --------------------------------------------------------------------------------------------------


def states(at: Generate) -> Outcome:
    """Are hidden states told?"""
    told = answered(at.ask(return_hidden_states=True)).raw.at("meta_info", "hidden_states")
    return Outcome("open", f"{len(told)} of them") if isinstance(told, list) and told else Outcome("ignored", "none")


def settings(at: Generate) -> Outcome:
    """Does the server tell its own settings?"""
    for path in ("/get_server_info", "/server_info"):
        raw = at.wire.get(path)
        if isinstance(raw.body, dict) and not raw.trouble and len(raw.body) >= _TOLD:
            return Outcome("open", f"{path} tells {len(raw.body)}")
    return path_of(raw)


# --- what may break it ---------------------------------------------------------------------------------------------


def long(at: Endpoint) -> Outcome:
    """Is a prompt of 200 000 characters answered or refused, and not failed over?"""
    return _survives(at, [json.dumps(at.body("word " * (_LONG // 5))).encode()])


def malformed(at: Endpoint) -> Outcome:
    """Are bodies that are none, or that hold nonsense, refused, and nothing failed over, up to here?"""
    plain = at.body(at.question)
    length = next((name for name in plain if name.startswith("max_")), "max_tokens")
    text = "text" if isinstance(at, Generate) else "messages"
    hostile = "\x00\x1b[31m\ud800"
    cut = {name: value for name, value in plain.items() if name != "sampling_params"}

    def with_(**fields: Any) -> bytes:
        return json.dumps(at.body(at.question, **fields)).encode()

    outcome = _survives(
        at,
        [
            json.dumps(plain).encode()[:-1],
            b'{"model": "\xff\xfe"}',
            b"[]",
            json.dumps({**cut, text: 7}).encode(),
            json.dumps({**cut, text: []}).encode(),
            b'{"' + text.encode() + b'": ' + b"[" * 2000 + b"]" * 2000 + b"}",
            with_(**{length: -1}),
            with_(**{length: "many"}),
            with_(temperature=float("nan")),
            json.dumps(at.body(hostile)).encode(),
        ],
    )
    broke = [trouble for path, trouble in at.wire.broke if path == at.path]
    if broke and outcome.verdict != "open":  # over what another check asked
        return Outcome("open", f"{len(broke)} well-formed requests break it: {broke[0]}")
    return outcome


def _survives(at: Endpoint, bodies: list[bytes]) -> Outcome:
    """The outcome of bodies that a server should answer or refuse; then it is asked whether it still stands."""
    raws = [at.wire.post(at.path, body) for body in bodies]
    if broke := [raw for raw in raws if raw.broke]:
        return Outcome("open", f"{len(broke)} of {len(raws)} break it: {broke[0].trouble}")
    if lost := next((raw for raw in raws if raw.status is None), None):
        return Outcome("unclear", lost.trouble)
    after = at.ask()
    if not after.answered:
        verdict: Verdict = "open" if after.raw.broke else "unclear"
        return Outcome(verdict, f"behind it the plain question isn't answered: {after.raw.trouble}")
    refused = sum(raw.refused for raw in raws)
    return Outcome("refused" if refused else "ignored", f"{refused} of {len(raws)} refused, none broke it")


BEGINNING = "the beginning of the answer alone"
CHECKS = (
    Check("system", "system turns", system, ("openai",), {Capability.SYS: ""}, hole=False),
    Check("history", "assistant turns in the conversation", history, ("openai",), {Capability.HIST: ""}, hole=False),
    Check("choices", "several answers to one request", choices, grants={Capability.N: ""}, hole=False),
    Check("seed", "a seed repeats", seed, hole=False),
    Check("key", "answers without the key", key),
    Check("masks", "mask tokens typed by a user", mask_outcome, grants={Capability.PMASK: ""}),
    Check("controls", "ends of turns typed by a user", end_outcome),
    Check("prefill", "an answer that the client begins", prefill, ("openai",), {Capability.POS: BEGINNING}),
    Check(
        "raw-prompt",
        "a text with no chat template around it",
        raw_prompt,
        grants={Capability.POS: BEGINNING, Capability.HIST: "", Capability.SYS: ""},
    ),
    Check("raw-ids", "a prompt's token ids", raw_ids),
    Check("ignore-eos", "answers that go on behind their end", ignore_eos),
    Check("logit-bias", "biased tokens", logit_bias, grants={Capability.BAN: "at every position alike"}),
    Check("pattern", "an answer by the client's pattern", pattern, grants={Capability.POS: "by a pattern"}),
    Check("logprobs", "log-probabilities", logprobs, grants={Capability.SLP: "of tokens that the model wrote alone"}),
    Check("states", "hidden states", states, ("sglang",)),
    Check("settings", "the server's own settings", settings, ("sglang",)),
)
LAST = (
    Check("long", "a prompt of 200 000 characters", long),
    Check("malformed", "malformed bodies", malformed),
    Check(
        "processor",
        "a logit processor that the client names",
        processor,
        grants={Capability.BAN: "", Capability.POS: "", Capability.SLP: "by code that the client sends"},
    ),
)
