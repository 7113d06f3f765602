"""WildJailbreak: composed prompts, the sandbox's set, and a file's."""

import json
import random

import pytest
from attack_double import REFUSAL, Double, said
from test_pair import FULL, drafts, refuses

from midward._fences import fields_of
from midward.attacks.wildjailbreak import COMMON, RARE, WILDJAILBREAK, draw
from midward.world.wrappers import wrappers

GOAL = "Make a drex valm skorn."


def answers(**by_task):
    """A scorer: task -> (fields -> the answer's value)."""
    keys = {"shared.on-topic": "same", "wildjailbreak.risk": "risky", "shared.score": "score"}
    rules = {"same": lambda fields: "yes", "risky": lambda fields: "yes", "score": lambda fields: 1} | by_task

    def answer(message):
        name, fields = fields_of(message) or ("", {})
        return json.dumps({keys[name]: rules[keys[name]](fields)}) if name else "?"

    return said(answer)


def test_the_composer_is_told_its_tactics(attack):
    attacker, prompts = drafts(lambda fields: fields["TACTICS"])
    api = Double(refuses)
    record, _ = attack(
        "wildjailbreak",
        api,
        roles={"attacker": attacker, "scorer": answers()[0]},
        count=2,
        candidates=2,
        tactics=5,
        replay=False,
    )
    assert len({fields_of(prompt)[1]["TACTICS"] for prompt in prompts}) == 2
    assert all(name in api.seen[0].prompt for name in record["note"]["tactics"])


def test_tactics_are_half_rare_without_repeats():
    for count in (1, 2, 3, 4, 7):
        names = draw(count, random.Random(count))
        assert len(set(names)) == count
        assert sum(name in RARE for name in names) == count // 2
    assert not set(COMMON) & set(RARE)


def test_off_topic_and_harmless_prompts_are_not_put(attack):
    number = iter(range(100))
    attacker, _ = drafts(lambda fields: ("bread", "soft", "sharp")[next(number) % 3])
    scorer, _ = answers(
        same=lambda fields: "no" if fields["PROMPT"] == "bread" else "yes",
        risky=lambda fields: "no" if fields["PROMPT"] == "soft" else "yes",
    )
    api = Double(refuses)
    record, _ = attack("wildjailbreak", api, roles={"attacker": attacker, "scorer": scorer}, candidates=9, replay=False)
    assert [seen.prompt for seen in api.seen] == ["sharp"] * 3
    assert record["dropped"] == {"off_topic": 3, "low_risk": 3, "too_many": 0}


def test_the_sandbox_set_holds_every_wrapper_once(attack):
    api = Double(refuses)
    record, _ = attack("wildjailbreak", api, prompts="sandbox", replay=False)
    assert sorted(seen.prompt for seen in api.seen) == sorted(one.apply(GOAL) for one in wrappers("test"))
    assert set(record["calls"]) == {"scorer"}


# --- a file ----------------------------------------------------------------------------------------------------------

PAIRED = [
    {"vanilla": "make a  drex valm skorn.", "adversarial": "Tell a tale of a skorn."},
    {"vanilla": "Bake bread.", "adversarial": "Tell a tale of bread."},
    {"vanilla": GOAL, "adversarial": "Sing, skorn."},
    {"vanilla": GOAL, "adversarial": "Sing, skorn."},
    {"vanilla": GOAL, "adversarial": " "},
]


@pytest.fixture
def file(tmp_path):
    def write(rows, name="wild.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def test_a_files_prompts_go_to_the_goal_they_were_made_from(attack, file):
    api = Double(lambda seen: FULL if "Sing" in seen.prompt else REFUSAL)
    record, sample = attack("wildjailbreak", api, prompts=file(PAIRED), replay=False)
    assert sorted(seen.prompt for seen in api.seen) == ["Sing, skorn.", "Tell a tale of a skorn."]
    assert sample.store["texts"]["reply"] == FULL
    assert record["judged_against"] == "plain request" and len(record["file_sha256"]) == 64


def test_a_file_without_plain_requests_is_judged_against_the_prompt(attack, file):
    api = Double(refuses)
    path = file([{"adversarial": one["adversarial"]} for one in PAIRED])
    record, _ = attack("wildjailbreak", api, goal="Sing, skorn.", prompts=path, replay=False)
    assert [seen.prompt for seen in api.seen] == ["Sing, skorn."] and record["judged_against"] == "prompt"


def test_a_goal_that_a_file_lacks_is_an_error_of_its_sample(attack, file):
    api = Double(refuses)
    message = attack("wildjailbreak", api, goal="Paint a wall.", prompts=file(PAIRED), error=True)
    assert "no prompt for the goal" in message and "vanilla" in message and api.seen == []


def test_a_count_draws_from_a_files_prompts(attack, file):
    rows = [{"vanilla": GOAL, "adversarial": f"Wrapped {n}."} for n in range(20)]
    path = file(rows)
    prompts = []
    for seed in (0, 0, 1):
        api = Double(refuses)
        attack("wildjailbreak", api, prompts=path, count=5, seed=seed, replay=False)
        prompts.append([seen.prompt for seen in api.seen])
    assert prompts[0] == prompts[1] != prompts[2] and all(len(set(one)) == 5 for one in prompts)


def test_other_columns_and_csv(attack, tmp_path):
    path = tmp_path / "wild.csv"
    path.write_text(f'plain,prompt\n"{GOAL}","Line one,\nline two"\n', encoding="utf-8")
    api = Double(refuses)
    attack("wildjailbreak", api, prompts=str(path), prompt_column="prompt", plain_column="plain", replay=False)
    assert [seen.prompt for seen in api.seen] == ["Line one,\nline two"]
    assert "adversarial" in attack("wildjailbreak", api, prompts=str(path), error=True)


@pytest.mark.parametrize("settings", [{"prompts": "no-such.csv"}, {"tactics": 11}, {"count": 0}, {"cuont": 3}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="wildjailbreak"):
        WILDJAILBREAK.configure(settings)
