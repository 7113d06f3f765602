"""A guard wherever a model is used: the provider, attacks, chat, the verbs of midward guard, the comparison."""

import csv
import json

import anyio
import pytest
from guard_world import LENGTH, STEPS, prompts
from inspect_ai.model import GenerateConfig, get_model
from typer.testing import CliRunner

import midward
from midward.attacks.cases import SHAPES, Case, cases
from midward.cli import app
from midward.goals import Goal
from midward.guards import STUB, DiffuGuard, DiffuGuardAudit, MaskFilter, SRIGuard, describe, save
from midward.guards import compare as defences
from midward.sampling import Forced, Request, Sampling, sample
from midward.serving.provider import ProviderError

FRESH = prompts(300, 16)
MASK = "<|mdm_mask|>"


@pytest.fixture
def run(monkeypatch):
    """A verb, run in this process; a traceback fails the test."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args, stdin=None):
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


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
        output = ask(api, text, extra_body={"trace": True})
        [said] = output.metadata["choices"]
        kinds.add(said["guard"]["flagged"])
        assert said["guard"]["flagged"] == expected.verdict.flagged and len(said["guard"]["signal"]) >= 1
        if expected.verdict.flagged:
            assert output.completion == STUB and output.stop_reason == "content_filter"
            assert said["authored"] == STUB and "commit_quarters" not in said
        else:
            bare = ask(plain, text, extra_body={"trace": True})
            assert output.completion == bare.completion and output.stop_reason == bare.stop_reason
            assert said["commit_quarters"] == bare.metadata["choices"][0]["commit_quarters"]
    assert kinds == {True, False}
    with pytest.raises(ProviderError, match="length 16 there, 12 here"):
        get_model(f"midward/{lively_folder}", guard=str(path), memoize=False, **{**given, "length": 12})


def test_a_request_flagged_beforehand_takes_no_ones_trace(model, sampling, lively_folder, tmp_path):
    guard = MaskFilter()
    guard.bind(model, sampling)
    guard.threshold, guard.alpha = 0.0, 0.1
    path = save(guard, tmp_path / "masks.safetensors")
    given = {"device": "cpu", "length": LENGTH, "steps": STEPS, "memoize": False}
    api = get_model(f"midward/{lively_folder}", guard=str(path), **given)
    plain = get_model(f"midward/{lively_folder}", **given)

    async def together():
        from inspect_ai.util import collect

        config = GenerateConfig(extra_body={"trace": True})
        texts = (f"t30 {MASK}", "t31 t32", f"t33 {MASK}", "t34")
        return await collect(*(api.generate(text, config=config) for text in texts))

    found = anyio.run(together)
    assert [one.stop_reason == "content_filter" for one in found] == [True, False, True, False]
    bare = ask(plain, "t34", extra_body={"trace": True})
    assert found[3].metadata["choices"][0]["commit_quarters"] == bare.metadata["choices"][0]["commit_quarters"]


def test_midward_attack_takes_a_guard_and_adds_its_row(run, flags, fitted, tmp_path, model, sampling):
    guard, path = fitted
    expected = guard.sample(model, FRESH, sampling)
    order = sorted(range(len(FRESH)), key=lambda i: not expected[i].verdict.flagged)
    chosen = [FRESH[i] for i in (order[0], order[-1])]  # one that is flagged, and one that isn't
    goals = tmp_path / "goals.csv"
    goals.write_text("goal\n" + "\n".join(chosen) + "\n")
    common = ["attack", *flags, "--attacks", "direct", "--judges", "refusal", "--goals", goals, "--no-replay"]
    result = run(*common, "--guard", f"G={path}", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["models"]["base+G"]["guard"] == str(path) and "base+G" in result.stdout
    with (tmp_path / "o" / "samples.csv").open(newline="") as file:
        replies = {(row["row"], row["prompt"]): row["reply"] for row in csv.DictReader(file)}
    assert replies["base+G", chosen[0]] == STUB != replies["base", chosen[0]]
    assert replies["base+G", chosen[1]] == replies["base", chosen[1]]
    result = run(*common, "--guard", tmp_path / "nothing.safetensors", "--out", tmp_path / "n")
    assert result.exit_code == 2 and "there is no file" in result.stderr
    result = run(*common, "--length", 12, "--guard", path, "--out", tmp_path / "l")
    assert result.exit_code == 2 and "length 16 there, 12 here" in result.stderr


def test_chat_behind_a_guard(run, flags, fitted, model, sampling):
    guard, path = fitted
    found = guard.sample(model, FRESH, sampling)
    bad = FRESH[next(i for i, one in enumerate(found) if one.verdict.flagged)]
    good = FRESH[next(i for i, one in enumerate(found) if not one.verdict.flagged)]
    result = run("chat", *flags, "--guard", path, stdin=f"{bad}\n/reset\n{good}\n")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == STUB and STUB not in result.stdout.splitlines()[1:]
    assert "flagged" in result.stderr and "passed" in result.stderr


def test_a_guards_own_prompts_are_left_out_of_its_evaluation(model, fitted, run, flags, tmp_path):
    guard, path = fitted
    assert describe(path)["fitted_on"] == list(guard.fitted_on) and len(guard.fitted_on) == 92 + 12
    table = tmp_path / "some.csv"
    table.write_text("prompt,harmful\n" + "".join(f"{one},0\n" for one in [*prompts(0, 92), *FRESH]))
    found = cases(model, str(table), 10, without=guard.fitted_on)
    assert len(found) == 10 and {case.plain for case in found} <= set(FRESH)
    assert {case.plain for case in cases(model, str(table), 200, without=guard.fitted_on)} == set(FRESH)
    table.write_text("prompt,harmful\n" + "".join(f"{one},0\n" for one in prompts(0, 9)))
    result = run("guard", "eval", *flags, "--guard", path, "--sets", table, "--out", tmp_path / "e")
    assert result.exit_code == 2 and "all 9 prompts" in result.stderr and "were used to fit" in result.stderr


def test_an_attack_that_only_fills_its_prompt_is_refused_behind_a_guard_of_one_sampling(run, flags, fitted, tmp_path):
    _, path = fitted
    goals = tmp_path / "goals.csv"
    goals.write_text("goal\nt30 t31\n")
    given = ["attack", *flags, "--attacks", "dija", "--judges", "refusal", "--goals", goals, "--guard", path]
    result = run(*given, "--plan")
    assert result.exit_code == 2 and "dija.mode=fill_then_answer" in result.stderr


def test_scores_of_another_guard_are_its_own(run, flags, model, sampling, tmp_path):
    """Two guards of the same threshold, for the same model: the second isn't told the first one's."""
    prompt = tmp_path / "prompts.csv"
    prompt.write_text(f"prompt\nt40 {MASK}\n")
    said = []
    for guard in (MaskFilter(), DiffuGuardAudit()):
        guard.bind(model, sampling)
        guard.threshold, guard.alpha = 0.0, 0.1
        path = save(guard, tmp_path / f"{guard.name}.safetensors")
        result = run("guard", "score", *flags, "--guard", path, "--prompts", prompt, "--out", tmp_path / "s.jsonl")
        assert result.exit_code == 0, result.stderr
        said.append(json.loads((tmp_path / "s.jsonl").read_text().splitlines()[-1])["guard"])
    assert said == ["masks", "diffuguard-audit"]


def test_scores_dont_overwrite_the_prompts(run, flags, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,mine\nt30,1\n")
    result = run("guard", "score", *flags, "--guard", "g", "--prompts", table, "--out", tmp_path / "prompts.jsonl")
    assert result.exit_code == 2 and "write over the prompts" in result.stderr
    assert table.read_text() == "prompt,mine\nt30,1\n"


def test_guard_fit_then_score_goes_on(run, flags, model, sampling, tmp_path):
    table = tmp_path / "prompts.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], *[[one] for one in prompts(0, 30)]])
    out = tmp_path / "g"
    fit = ["guard", "fit", *flags, "--harmless", table, "--held-out", 12, "--alpha", 0.2, "--out", out]
    result = run(*fit, "--guards", "masks,perplexity:samples=2")
    assert result.exit_code == 0 and (out / "perplexity-samples-2.safetensors").exists(), result.stderr
    scored = ["guard", "score", *flags, "--guard", out / "masks.safetensors", "--out", tmp_path / "s.jsonl"]
    few = tmp_path / "few.csv"
    few.write_text(f"prompt\nt30 t31\nt40 {MASK}\n")
    result = run(*scored, "--prompts", few)
    assert result.exit_code == 0 and "1 of 2 flagged" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    [plain] = sample(model, ["t30 t31"], sampling)
    assert [row["response"] for row in rows] == [plain.text, STUB] and rows[1]["score"] == 1
    before = (tmp_path / "s.jsonl").read_bytes()
    assert run(*scored, "--prompts", few).exit_code == 0 and (tmp_path / "s.jsonl").read_bytes() == before
    assert (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--guards", "sry"], "Did you mean 'sri'"),
        (["--guards", "sri:erly=true"], "no setting 'erly'. Did you mean 'early'"),
        (["--guards", "masks", "--held-out", "12"], "takes 99 held-out harmless prompts or more; received 12"),
        (["--guards", "masks", "--alpha", "2"], "between 0 and 1"),
    ],
)
def test_bad_input_to_guard_fit_is_told(run, flags, tmp_path, more, message):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\n" + "\n".join(prompts(0, 30)) + "\n")
    result = run("guard", "fit", *flags, "--harmless", table, "--out", tmp_path, *more)
    assert result.exit_code == 2 and message in result.stderr


def test_a_surrogate_guards_another_models_answers(model, sampling, fitted, tmp_path):
    """The signals are the surrogate's, the answers the other's; one that failed is unscored, not safe."""
    guard, _ = fitted
    goals = [Goal(f"g{i}", text, "made-up", i > 1) for i, text in enumerate(FRESH[:4])]
    asked = [Case("attacked" if goal.harmful else "benign", goal, Request(goal.text), goal.text) for goal in goals]
    other = defences.Front("mock/other", lambda texts: [None if text == FRESH[3] else f"!{text}" for text in texts])

    def judging(some, texts):
        return [{"success": text.startswith("!"), "refused": False, "correct": None} for text in texts]

    def answer(folder, behind):
        return defences.answer(
            model, asked, {"sri": guard}, tmp_path / folder, sampling=sampling, judging=judging, behind=behind
        )

    rows, own = answer("behind", other), answer("own", None)
    assert [row["response"] for row in rows] == [f"!{text}" for text in FRESH[:3]] + [""]
    assert [row["signals"] for row in rows] == [row["signals"] for row in own]
    assert rows[2]["success"] is True and rows[3]["success"] is None
    said = defences.judge_by(
        model, asked, {"sri": guard}, rows, tmp_path / "behind", sampling=sampling, judging=judging
    )
    none, _ = defences.table(rows, said, {})
    assert (none["asr"]["all"].n, none["asr"]["all"].unscored) == (1, 1)
    forced = Request(FRESH[0], (Forced(0, (5,)),))
    asked = [Case("prefill", goals[0], forced, FRESH[0])]
    with pytest.raises(ValueError, match="'prefill' forces tokens or sends masks"):
        answer("shaped", other)


def test_any_inspect_model_can_be_behind_a_surrogate(llada_folder):
    name = f"midward/{llada_folder}"
    with defences.front(name) as other:
        assert other.name == name
        said = other.ask(["one", "two"])
    plain = midward.load(llada_folder, device="cpu")
    assert said == [response.text for response in sample(plain, ["one", "two"])]


def test_a_comparison_says_what_the_guard_in_front_does(model, sampling, fitted, tmp_path, monkeypatch):
    guard, _ = fitted
    masks = MaskFilter()
    masks.bind(model, sampling)
    masks.threshold = 0.0
    guards = {"sri": guard, "masks": masks}
    asked = [
        Case("attacked" if i % 2 else "benign", Goal(f"g{i}", text, "made-up", bool(i % 2)), Request(text), text)
        for i, text in enumerate([*FRESH, f"t30 {MASK} t31", f"t32 {MASK}"])
    ]

    def judging(some, texts):
        return [{"success": len(text) % 3 > 0, "refused": len(text) % 3 == 0, "correct": None} for text in texts]

    def compare():
        rows = defences.answer(model, asked, guards, tmp_path, sampling=sampling, judging=judging, batch_size=7)
        return rows, defences.judge_by(model, asked, guards, rows, tmp_path, sampling=sampling, judging=judging)

    rows, said = compare()
    in_front = guard.sample(model, [case.request for case in asked], sampling)
    without = sample(model, [case.request for case in asked], sampling)
    for row, one, guarded, bare in zip(rows, said["sri"], in_front, without, strict=True):
        assert one["flagged"] == guarded.verdict.flagged
        assert defences._saved(row, one) == (bare.steps - guarded.steps if one["flagged"] else 0)
    none, sri, _ = defences.table(rows, said, {"sri": 0.1, "masks": 0.0})
    assert none["asr"]["all"].hits == sum(bool(row["success"]) for row in rows)
    through = sum(bool(row["success"]) and not one["flagged"] for row, one in zip(rows, said["sri"], strict=True))
    assert sri["asr"]["all"].hits == through
    assert sri["gain"].value == pytest.approx(none["asr"]["all"].value - sri["asr"]["all"].value)
    assert sri["flags"]["benign"].n == 9 and none["saved"] is None
    assert said["masks"][-1]["score"] == 1 and MASK not in rows[-1]["response"]

    monkeypatch.setattr(defences, "sample", None)
    monkeypatch.setattr(SRIGuard, "score", None)
    assert compare() == (rows, said)  # all of it was kept


def test_cases_are_the_sandboxs_sets_and_shapes_of_attacks(model):
    wrapped = cases(model, "wrappers", 4)
    assert all(case.harmful and case.plain != case.request.prompt for case in wrapped)
    assert [case.plain for case in wrapped] == [case.request.prompt for case in cases(model, "plain", 4)]
    assert not any(case.harmful for case in cases(model, "benign-wrapped", 4))
    for shape in SHAPES:
        [case] = cases(model, shape, 1)
        assert case.harmful and (case.request.forced or MASK in case.request.prompt)
    with pytest.raises(ValueError, match="Did you mean 'benign-wrapped'"):
        cases(model, "benign-wraped", 1)


def test_guard_eval_writes_its_tables_and_figures(run, flags, fitted, tmp_path, model):
    guard, path = fitted
    table = tmp_path / "mixed.csv"
    table.write_text("prompt,harmful\n" + "".join(f"{one},{i % 2}\n" for i, one in enumerate(FRESH[:8])))
    given = ["guard", "eval", *flags, "--guard", path, "--sets", table, "--repeats", 1, "--out", tmp_path / "e"]
    result = run(*given)
    assert result.exit_code == 2 and "--judge" in result.stderr
    result = run(*given, "--judge", "midward/sandbox-assistant")
    assert result.exit_code == 0, result.stderr
    for name in ("table.md", "summary.json", "defences.csv", "scores.csv", "roc.png"):
        assert (tmp_path / "e" / name).stat().st_size > 0
    assert "| none " in result.stdout and "| sri " in result.stdout
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    flagged = [
        one.verdict.flagged
        for one in guard.sample(model, FRESH[:8], Sampling.for_model(model, length=LENGTH, steps=STEPS))
    ]
    [sri] = [row for row in summary if row["defence"] == "sri"]
    # Each half of the file is counted with its own kind: the even rows are harmless, the odd ones are not.
    [harmless], attacked = sri["flags"].values(), sri["asr"]["all"]
    assert (harmless["hits"], harmless["n"]) == (sum(flagged[::2]), 4) and attacked["n"] <= 4
    result = run(*given[:4], "--guard", tmp_path)
    assert result.exit_code == 2


def test_a_guards_own_settings_are_the_verbs_defaults(run, lively_folder, fitted, tmp_path):
    _, path = fitted
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "t30 t31"}\n')
    command = [
        "guard",
        "score",
        "--model",
        lively_folder,
        "--device",
        "cpu",
        "--guard",
        path,
        "--prompts",
        asked,
        "--out",
        tmp_path / "scores.jsonl",
    ]
    result = run(*command)
    assert result.exit_code == 0 and "as the guard was fitted" in result.stderr
    assert f"length {LENGTH}, steps {STEPS}" in result.stderr
    result = run(*command, "--length", LENGTH - 4)
    assert result.exit_code == 2 and f"length {LENGTH} there, {LENGTH - 4} here" in result.stderr
    api = get_model(f"midward/{lively_folder}", guard=str(path), memoize=False, device="cpu")
    used = ask(api, "t30 t31").metadata["sampling"]
    assert (used["length"], used["steps"]) == (LENGTH, STEPS)


def test_a_guard_that_repairs_is_judged_by_what_it_answers(model, sampling, tmp_path):
    guard = DiffuGuard()
    guard.bind(model, sampling)
    guard.threshold = 0.0
    asked = [
        Case("attacked", Goal(f"g{i}", text, "made-up", True), Request(text, (Forced(1, (44,)),)), text)
        for i, text in enumerate(FRESH[:2])
    ]

    def judging(some, texts):
        return [{"success": hash(text) % 2 == 0, "refused": False, "correct": None} for text in texts]

    rows = defences.answer(model, asked, {"it": guard}, tmp_path, sampling=sampling, judging=judging)
    said = defences.judge_by(model, asked, {"it": guard}, rows, tmp_path, sampling=sampling, judging=judging)
    answers = [response.text for response in guard.sample(model, [case.request for case in asked], sampling)]
    assert [one["response"] for one in said["it"]] == answers and all(one["flagged"] for one in said["it"])
    assert [one["nfe"] > row["nfe"] for one, row in zip(said["it"], rows, strict=True)] == [True, True]
    _, mine = defences.table(rows, said, {})
    assert mine["asr"]["all"].hits == sum(hash(text) % 2 == 0 for text in answers)


def test_a_file_of_harmless_prompts_is_no_attack(model, fitted, run, flags, tmp_path):
    _, path = fitted
    calm, attacked = tmp_path / "calm.csv", tmp_path / "attacked.csv"
    calm.write_text("prompt\n" + "\n".join(FRESH[:3]) + "\n")
    attacked.write_text("prompt\n" + "\n".join(FRESH[3:5]) + "\n")
    assert all(case.harmful for case in cases(model, str(calm), 5))
    assert not any(case.harmful for case in cases(model, str(calm), 5, harmless=True))
    result = run(
        "guard",
        "eval",
        *flags,
        "--guard",
        path,
        "--sets",
        attacked,
        "--harmless",
        calm,
        "--judge",
        "midward/sandbox-assistant",
        "--repeats",
        1,
        "--out",
        tmp_path / "e",
    )
    assert result.exit_code == 0, result.stderr
    assert f"{attacked} has no column `harmful`" in result.stderr and f"{calm} has no" not in result.stderr
    for row in json.loads((tmp_path / "e" / "summary.json").read_text()):
        assert row["flags"].keys() == {"calm"} and row["asr"].keys() == {"attacked", "all"}


def test_a_goal_in_several_sets_is_one_draw_and_guards_are_one_family():
    def asked(sets):
        return [
            {
                "set": name,
                "id": f"{name}-{n}",
                "subject": f"thing {n}",
                "harmful": True,
                "success": n % 4 > 0,
                "refused": False,
                "steps": 8,
            }
            for name in sets
            for n in range(40)
        ]

    def says(rows, every):
        return [{"score": float(n % every), "flagged": (n % 40) % every == 0, "step": None} for n in range(len(rows))]

    one, many = (
        defences.table(rows, {"a": says(rows, 5), "b": says(rows, 3)}, {})
        for rows in (asked(["x"]), asked(["x", "y", "z"]))
    )
    assert (many[1]["gain"].n, many[1]["gain"].goals) == (120, 40)
    for single, pooled in zip(one, many, strict=True):
        assert (pooled["asr"]["all"].low, pooled["asr"]["all"].high) == pytest.approx(
            (single["asr"]["all"].low, single["asr"]["all"].high)
        )
        if single["gain"].value:
            assert (pooled["gain"].low, pooled["gain"].high) == pytest.approx((single["gain"].low, single["gain"].high))
    assert [row["gain"].family for row in many[1:]] == [2, 2]
