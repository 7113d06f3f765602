"""A guard wherever a model is used: the provider, attacks, chat, the verbs of midward guard, the comparison."""

import csv
import json

import anyio
import pytest
from guard_world import LENGTH, STEPS, asked, prompts
from inspect_ai.model import GenerateConfig, get_model

from midward.attacks.cases import cases
from midward.errors import InputError
from midward.guards import STUB, DiffuGuardAudit, MaskFilter, Sizes, describe, fit_guards, make, save
from midward.guards.fitting import answers_of
from midward.sampling import Sampling, sample
from midward.serving.provider import ProviderError

FRESH = prompts(300, 16)
MASK = "<|mdm_mask|>"


@pytest.fixture
def flags(lively_folder):
    return ["--model", lively_folder, "--device", "cpu", "--length", LENGTH, "--steps", STEPS]


def ask(api, text, **config):
    return anyio.run(lambda: api.generate(text, config=GenerateConfig(**config)))


def test_the_provider_gives_the_stub_the_verdict_and_nothing_else(model, sampling, fitted, lively_folder):
    guard, path = fitted
    given = {"device": "cpu", "length": LENGTH, "steps": STEPS}
    api = get_model(f"midward/{lively_folder}", guard=str(path), memoize=False, **given)
    plain = get_model(f"midward/{lively_folder}", memoize=False, **given)
    assert api.api.base_url != plain.api.base_url  # or Inspect's cache would answer for the other
    kinds = set()
    for text, expected in zip(FRESH, guard.sample(model, FRESH, sampling), strict=True):
        output = ask(api, text)
        [said] = output.metadata["choices"]
        kinds.add(said["guard"]["flagged"])
        assert said["guard"]["flagged"] == expected.verdict.flagged and len(said["guard"]["signal"]) >= 1
        if expected.verdict.flagged:
            assert output.completion == STUB and output.stop_reason == "content_filter"
            assert said["authored"] == STUB
        else:
            bare = ask(plain, text)
            assert output.completion == bare.completion and output.stop_reason == bare.stop_reason
    assert kinds == {True, False}
    with pytest.raises(ProviderError, match="length 16 there, 12 here"):
        get_model(f"midward/{lively_folder}", guard=str(path), memoize=False, **{**given, "length": 12})


def test_a_request_flagged_beforehand_takes_no_ones_place(model, sampling, lively_folder, tmp_path):
    guard = MaskFilter()
    guard.bind(model, sampling)
    guard.threshold, guard.alpha = 0.0, 0.1
    path = save(guard, tmp_path / "masks.safetensors")
    given = {"device": "cpu", "length": LENGTH, "steps": STEPS, "memoize": False}
    api = get_model(f"midward/{lively_folder}", guard=str(path), **given)
    plain = get_model(f"midward/{lively_folder}", **given)

    async def together():
        from inspect_ai.util import collect

        texts = (f"t30 {MASK}", "t31 t32", f"t33 {MASK}", "t34")
        return await collect(*(api.generate(text) for text in texts))

    found = anyio.run(together)
    assert [one.stop_reason == "content_filter" for one in found] == [True, False, True, False]
    assert [found[i].completion for i in (1, 3)] == [ask(plain, text).completion for text in ("t31 t32", "t34")]


def test_midward_attack_takes_a_guard_and_adds_its_row(midward, flags, fitted, tmp_path, model, sampling):
    guard, path = fitted
    expected = guard.sample(model, FRESH, sampling)
    order = sorted(range(len(FRESH)), key=lambda i: not expected[i].verdict.flagged)
    chosen = [FRESH[i] for i in (order[0], order[-1])]  # one that is flagged, and one that isn't
    goals = tmp_path / "goals.csv"
    goals.write_text("goal\n" + "\n".join(chosen) + "\n")
    common = ["attack", *flags, "--attacks", "direct", "--judges", "refusal", "--goals", goals, "--no-replay"]
    result = midward(*common, "--guard", f"G={path}", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["models"]["base+G"]["guard"] == str(path) and "base+G" in result.stdout
    with (tmp_path / "o" / "samples.csv").open(newline="") as file:
        replies = {(row["row"], row["prompt"]): row["reply"] for row in csv.DictReader(file)}
    assert replies["base+G", chosen[0]] == STUB != replies["base", chosen[0]]
    assert replies["base+G", chosen[1]] == replies["base", chosen[1]]
    result = midward(*common, "--guard", tmp_path / "nothing.safetensors", "--out", tmp_path / "n")
    assert result.exit_code == 2 and "there is no guard" in result.stderr
    result = midward(*common, "--length", 12, "--guard", path, "--out", tmp_path / "l")
    assert result.exit_code == 2 and "length 16 there, 12 here" in result.stderr


def test_chat_behind_a_guard(midward, flags, fitted, model, sampling):
    guard, path = fitted
    found = guard.sample(model, FRESH, sampling)
    bad = FRESH[next(i for i, one in enumerate(found) if one.verdict.flagged)]
    good = FRESH[next(i for i, one in enumerate(found) if not one.verdict.flagged)]
    result = midward("chat", *flags, "--guard", path, stdin=f"{bad}\n/reset\n{good}\n")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == STUB and STUB not in result.stdout.splitlines()[1:]
    assert "flagged" in result.stderr and "passed" in result.stderr


def test_a_guards_own_prompts_are_left_out_of_its_evaluation(model, fitted, midward, flags, tmp_path):
    guard, path = fitted
    assert describe(path)["fitted_on"] == guard.fitted_on and len(guard.fitted_on) == 92 + 12
    table = tmp_path / "some.csv"
    table.write_text("prompt,harmful\n" + "".join(f"{one},0\n" for one in [*prompts(0, 92), *FRESH]))
    found = cases(model, str(table), 10, without=guard.fitted_on)
    assert len(found) == 10 and {case.about["plain"] for case in found} <= set(FRESH)
    assert {case.about["plain"] for case in cases(model, str(table), 200, without=guard.fitted_on)} == set(FRESH)
    table.write_text("prompt,harmful\n" + "".join(f"{one},0\n" for one in prompts(0, 9)))
    result = midward("guard", "eval", *flags, "--guard", path, "--sets", table, "--out", tmp_path / "e")
    assert result.exit_code == 2 and "all 9 prompts" in result.stderr and "were used to fit" in result.stderr


def test_an_attack_that_only_fills_its_prompt_is_refused_behind_a_guard_of_one_sampling(
    midward, flags, fitted, tmp_path
):
    _, path = fitted
    goals = tmp_path / "goals.csv"
    goals.write_text("goal\nt30 t31\n")
    given = ["attack", *flags, "--attacks", "dija", "--judges", "refusal", "--goals", goals, "--guard", path]
    result = midward(*given, "--plan")
    assert result.exit_code == 2 and "dija.mode=fill_then_answer" in result.stderr


def test_scores_of_another_guard_are_another_run(midward, flags, model, sampling, tmp_path):
    """Two guards of the same threshold, for the same model: the second isn't told the first one's."""
    prompt = tmp_path / "prompts.csv"
    prompt.write_text(f"prompt\nt40 {MASK}\n")
    paths = []
    for guard in (MaskFilter(), DiffuGuardAudit()):
        guard.bind(model, sampling)
        guard.threshold, guard.alpha = 0.0, 0.1
        paths.append(save(guard, tmp_path / f"{guard.name}.safetensors"))
    given = ["guard", "score", *flags, "--prompts", prompt, "--out", tmp_path / "s.jsonl", "--guard"]
    assert midward(*given, paths[0]).exit_code == 0
    result = midward(*given, paths[1])
    assert result.exit_code == 2 and "another guard" in result.stderr
    assert midward(*given, paths[1], "--overwrite").exit_code == 0
    [row] = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert row["guard"]["guard"] == "diffuguard-audit"


def test_scores_dont_overwrite_the_prompts(midward, flags, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,mine\nt30,1\n")
    given = ["--guard", table, "--prompts", table, "--out", tmp_path / "prompts.jsonl"]
    result = midward("guard", "score", *flags, *given)
    assert result.exit_code == 2 and "write over the prompts" in result.stderr
    assert table.read_text() == "prompt,mine\nt30,1\n"


def test_guard_fit_then_score_goes_on(midward, flags, model, sampling, tmp_path):
    table = tmp_path / "prompts.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], *[[one] for one in prompts(0, 30)]])
    out = tmp_path / "g"
    fit = ["guard", "fit", *flags, "--harmless", table, "--held-out", 12, "--alpha", 0.2, "--out", out]
    result = midward(*fit, "--guards", "masks,perplexity:samples=2")
    assert result.exit_code == 0 and (out / "perplexity-samples-2.safetensors").exists(), result.stderr
    scored = ["guard", "score", *flags, "--guard", out / "masks.safetensors", "--out", tmp_path / "s.jsonl"]
    few = tmp_path / "few.csv"
    few.write_text(f"prompt\nt30 t31\nt40 {MASK}\n")
    result = midward(*scored, "--prompts", few)
    assert result.exit_code == 0 and "1 of 2 flagged" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    [plain] = sample(model, ["t30 t31"], sampling)
    assert [row["response"] for row in rows] == [plain.text, STUB] and rows[1]["guard"]["score"] == 1
    command = json.loads((tmp_path / "s.jsonl.run.json").read_text())["command"]
    assert command[:3] == ["midward", "guard", "score"] and {"--guard", "--prompts"} <= {*command}
    before = (tmp_path / "s.jsonl").read_bytes()
    assert midward(*scored, "--prompts", few).exit_code == 0 and (tmp_path / "s.jsonl").read_bytes() == before
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [row["flagged"] for row in csv.DictReader(file)] == ["False", "True"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guards", "sry"], "Did you mean 'sri'"),
        (["--guards", "sri:erly=true"], "no setting 'erly'. Did you mean 'early'"),
        (["--guards", "masks", "--held-out", "12"], "takes 99 held-out harmless prompts or more; received 12"),
        (["--guards", "masks", "--alpha", "2"], "between 0 and 1"),
    ],
)
def test_bad_input_to_guard_fit_is_told(midward, flags, tmp_path, more, message):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\n" + "\n".join(prompts(0, 30)) + "\n")
    result = midward("guard", "fit", *flags, "--harmless", table, "--out", tmp_path, *more)
    assert result.exit_code == 2 and message in result.stderr
    assert "ablation" not in result.stderr  # it is an attack


@pytest.mark.parametrize("names", [("masks",), ("sri", "masks"), ("sri", "direction"), ("sri-blocks",)])
def test_what_a_fit_samples_is_counted_before(model, sampling, tmp_path, names):
    sizes, told = Sizes(12, 8, 20), {}
    guards = {name: make("sri:epochs=1;seeds=1" if name == "sri" else name) for name in names}
    harmless, harmful = asked(prompts(0, sizes.harmless)), asked(prompts(200, 10), harmful=True)
    fit_guards(
        *(model, guards, harmless, harmful, tmp_path),
        **{"refused": lambda text: bool(len(text) % 2), "sampling": sampling, "alpha": 0.25, "sizes": sizes},
        progress=lambda what, done, of: told.update({what: of}),
    )
    told.pop("calibrating")
    assert sum(answers_of(model, guards, harmless, harmful, sizes).values()) == sum(told.values())


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        (30, ["--guards", "masks"], "30 harmless prompts, and 200 are needed: 200 held out (--held-out)"),
        (130, ["--guards", "sri", "--held-out", "99"], "130 harmless prompts, and 1699 are needed: 400 for anchors"),
    ],
)
def test_too_few_prompts_for_guard_fit_are_told_before_the_model_is_loaded(midward, tmp_path, prompts, more, message):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\n" + "\n".join(f"t{n}" for n in range(prompts)) + "\n")
    given = ["--model", "org/no-model", "--harmless", table, "--harmful", table, "--out", tmp_path / "g"]
    result = midward("guard", "fit", *given, *more)
    assert result.exit_code == 2 and message in result.stderr, result.stderr


def test_the_default_sets_follow_a_short_length(midward, flags, fitted, tmp_path):
    _, path = fitted
    given = ["guard", "eval", *flags, "--guard", path, "--count", 2, "--repeats", 1, "--out", tmp_path / "e"]
    result = midward(*given)
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "e" / "rows.jsonl").open()]
    assert {"prefill", "prefill-mid", "pad", "dija"} < {row["set"] for row in rows}


@pytest.mark.parametrize("shape", ["prefill", "prefill-mid", "pad"])
def test_a_shape_that_a_response_is_too_short_for_says_where_and_what_to_do(model, shape):
    [case] = cases(model, shape, 1, length=20)
    assert max(span.position + len(span.ids) for span in case.request.forced) <= 20
    with pytest.raises(InputError, match=rf"the set '{shape}' in responses of 2 tokens \(--length\): .*response token"):
        cases(model, shape, 1, length=2)


def test_guard_eval_writes_its_tables_and_figures(midward, flags, fitted, tmp_path, model):
    guard, path = fitted
    table = tmp_path / "mixed.csv"
    table.write_text("prompt,harmful\n" + "".join(f"{one},{i % 2}\n" for i, one in enumerate(FRESH[:8])))
    given = ["guard", "eval", *flags, "--guard", path, "--sets", table, "--repeats", 1, "--out", tmp_path / "e"]
    result = midward(*given)
    assert result.exit_code == 2 and "--judge" in result.stderr
    result = midward(*given, "--judge", "midward/sandbox-assistant")
    assert result.exit_code == 0, result.stderr
    for name in ("table.md", "summary.json", "run.json", "guards.csv", "scores.csv", "signals.svg"):
        assert (tmp_path / "e" / name).stat().st_size > 0
    record = json.loads((tmp_path / "e" / "run.json").read_text())
    [guarded] = record["models"]
    assert (guarded["label"], guarded["guard"], guarded["guard_digest"]) == ("sri", str(path), guard.digest)
    assert record["judges"][0]["model"] == "midward/sandbox-assistant" and record["sampling"]["length"] == LENGTH
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    flagged = [
        one.verdict.flagged
        for one in guard.sample(model, FRESH[:8], Sampling.for_model(model, length=LENGTH, steps=STEPS))
    ]
    [sri] = [row for row in summary["defences"] if row["defence"] == "sri"]
    # Each half of the file is counted with its own kind: the even rows are harmless, the odd ones are not.
    [harmless], attacked = sri["flags"].values(), sri["asr"]["all"]
    assert (harmless["hits"], harmless["n"]) == (sum(flagged[::2]), 4) and attacked["n"] <= 4
    result = midward(*given[:4], "--guard", tmp_path)
    assert result.exit_code == 2


def test_a_guards_own_settings_are_the_verbs_defaults(midward, lively_folder, fitted, tmp_path):
    _, path = fitted
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "t30 t31"}\n')
    command = ["guard", "score", "--model", lively_folder, "--device", "cpu", "--guard", path, "--prompts", asked]
    command += ["--out", tmp_path / "scores.jsonl"]
    result = midward(*command)
    assert result.exit_code == 0 and "as the guard was fitted" in result.stderr
    assert f"length {LENGTH}, steps {STEPS}" in result.stderr
    result = midward(*command, "--length", LENGTH - 4)
    assert result.exit_code == 2 and f"length {LENGTH} there, {LENGTH - 4} here" in result.stderr
    api = get_model(f"midward/{lively_folder}", guard=str(path), memoize=False, device="cpu")
    used = ask(api, "t30 t31").metadata["sampling"]
    assert (used["length"], used["steps"]) == (LENGTH, STEPS)


def test_a_file_of_harmless_prompts_is_no_attack(model, fitted, midward, flags, tmp_path):
    _, path = fitted
    calm, attacked = tmp_path / "calm.csv", tmp_path / "attacked.csv"
    calm.write_text("prompt\n" + "\n".join(FRESH[:3]) + "\n")
    attacked.write_text("prompt\n" + "\n".join(FRESH[3:5]) + "\n")
    assert all(case.goal.harmful for case in cases(model, str(calm), 5))
    assert not any(case.goal.harmful for case in cases(model, str(calm), 5, harmless=True))
    given = ["guard", "eval", *flags, "--guard", path, "--sets", attacked, "--harmless", calm]
    result = midward(*given, "--judge", "midward/sandbox-assistant", "--repeats", 1, "--out", tmp_path / "e")
    assert result.exit_code == 0, result.stderr
    assert f"{attacked} has no column `harmful`" in result.stderr and f"{calm} has no" not in result.stderr
    for row in json.loads((tmp_path / "e" / "summary.json").read_text())["defences"]:
        assert row["flags"].keys() == {"calm"} and row["asr"].keys() == {"attacked", "all"}


def test_goals_that_no_set_is_put_on_are_told(midward, flags, tmp_path):
    given = ["guard", "eval", *flags, "--out", tmp_path / "e", "--goals", "advbench", "--sets", "benign,plain"]
    result = midward(*given)
    assert result.exit_code == 2 and "--goals advbench" in result.stderr and "prefill" in result.stderr
