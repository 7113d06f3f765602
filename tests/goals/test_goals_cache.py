"""Downloads that go well and badly; what stays in the cache."""

import hashlib
import os
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from midward.goals import SETS, GoalsError, load
from midward.goals.cache import cached_path

ONE = b"goal,target\nPlaceholder one,Sure\n"
OTHER = b"goal,target\nPlaceholder other,Sure\n"


def files(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


def test_a_second_load_reads_the_cache(publish, site, cache, tmp_path):
    publish("advbench", ONE)
    load("advbench", cache=tmp_path / "elsewhere")
    assert files(cache) == [] and len(files(tmp_path / "elsewhere")) == 1
    site.hits.clear()
    first = load("advbench")
    site.answers.clear()
    assert load("advbench") == first and len(site.hits) == 1
    assert site.hits[0] == f"/{SETS['advbench'].revision}/harmful_behaviors.csv"
    assert files(cache) == [cached_path(SETS["advbench"]).name]


@pytest.mark.parametrize("answer, message", [(404, "404"), (500, "500"), (("cut", ONE[:10]), "IncompleteRead")])
def test_a_failed_download_leaves_nothing_and_can_be_repeated(publish, site, cache, answer, message):
    publish("advbench", ONE)
    site.answers["harmful_behaviors.csv"] = answer
    with pytest.raises(GoalsError, match=message) as failed:
        load("advbench")
    for part in ("advbench can't be downloaded from", SETS["advbench"].address, str(cached_path(SETS["advbench"]))):
        assert part in str(failed.value)
    assert files(cache) == []
    site.answers["harmful_behaviors.csv"] = ONE
    assert load("advbench")[0].text == "Placeholder one"


def test_no_network(publish, cache, monkeypatch):
    publish("advbench", ONE)
    away = replace(SETS["advbench"], url="http://127.0.0.1:9/{revision}/harmful_behaviors.csv")
    monkeypatch.setitem(SETS, "advbench", away)
    with pytest.raises(GoalsError, match=r"refused.* fetch that file elsewhere and put it at"):
        load("advbench")
    cache.mkdir(parents=True)
    cached_path(away).write_bytes(ONE)
    assert len(load("advbench")) == 1


def test_another_file_than_the_recorded_one_is_not_kept(publish, cache):
    publish("advbench", OTHER, sha256=hashlib.sha256(ONE).hexdigest())
    with pytest.raises(GoalsError, match=r"has the sha256 .*, not .* It was not kept"):
        load("advbench")
    assert files(cache) == []


def test_a_changed_file_in_the_cache_is_refused(publish, site):
    publish("advbench", ONE)
    load("advbench")
    path = cached_path(SETS["advbench"])
    path.write_bytes(path.read_bytes() + b"Placeholder added,Sure\n")
    with pytest.raises(GoalsError, match=r"changed or damaged. Remove it"):
        load("advbench")
    path.unlink()
    assert len(load("advbench")) == 1


def test_what_a_killed_download_left_is_not_read(publish, cache):
    publish("advbench", ONE)
    cache.mkdir(parents=True)
    for number in (os.getpid(), 1):
        (cache / f"{cached_path(SETS['advbench']).name}.{number}.part").write_bytes(ONE[:15])
    assert [goal.text for goal in load("advbench")] == ["Placeholder one"]


def test_ctrl_c_while_writing_leaves_nothing(publish, cache, monkeypatch):
    publish("advbench", ONE)

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("midward.store.os.replace", stopped)
        load("advbench")
    assert files(cache) == []
    assert len(load("advbench")) == 1


def test_without_a_stated_sha256_the_first_file_sets_it(publish, site, cache):
    publish("advbench", ONE, sha256=None)
    load("advbench")
    path = cached_path(SETS["advbench"])
    beside = path.with_name(f"{path.name}.sha256")
    assert beside.read_text() == hashlib.sha256(ONE).hexdigest()
    path.write_bytes(OTHER)
    with pytest.raises(GoalsError, match="changed or damaged"):
        load("advbench")
    path.unlink()
    site.answers["harmful_behaviors.csv"] = OTHER
    with pytest.raises(GoalsError, match="It was not kept"):
        load("advbench")
    assert files(cache) == [beside.name]


def test_a_file_put_there_by_hand_is_recorded_when_first_seen(publish, site, cache):
    publish("advbench", ONE, sha256=None)
    path = cached_path(SETS["advbench"])
    cache.mkdir(parents=True)
    path.write_bytes(OTHER)
    assert load("advbench")[0].text == "Placeholder other" and site.hits == []
    path.write_bytes(ONE)
    with pytest.raises(GoalsError, match="changed or damaged"):
        load("advbench")


# --- the Hub ---------------------------------------------------------------------------------------------------

SORRY = b'{"question_id": 1, "category": "1", "prompt_style": "base", "turns": ["Placeholder one"]}\n'


def test_a_gated_set_names_its_terms_and_the_token(cache, monkeypatch):
    for status, kind in ((401, errors.GatedRepoError), (403, errors.GatedRepoError), (401, errors.HfHubHTTPError)):

        def refuse(*args, status=status, kind=kind, **kwargs):
            response = SimpleNamespace(status_code=status, headers={}, request=None)
            raise kind(f"{status} Client Error", response=response)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(GoalsError) as refused:
            load("sorry-bench")
        for part in ("is gated", "https://huggingface.co/datasets/sorry-bench/sorry-bench-202503,", "HF_TOKEN"):
            assert part in str(refused.value)
    assert files(cache) == []


def test_a_set_on_the_hub_is_asked_for_at_its_revision_and_once(cache, monkeypatch, tmp_path):
    asked = []

    def give(repo, file, **kwargs):
        asked.append((repo, file, kwargs))
        (tmp_path / "blob").write_bytes(SORRY)
        return str(tmp_path / "blob")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    assert load("sorry-bench") == load("sorry-bench")
    where = {"repo_type": "dataset", "revision": SETS["sorry-bench"].revision}
    assert asked == [("sorry-bench/sorry-bench-202503", "question.jsonl", where)]
    assert [name.endswith(".sha256") for name in files(cache)] == [False, True]


def test_the_hub_out_of_reach(cache, monkeypatch, tmp_path):
    # HF_HUB_OFFLINE is set in tests/conftest.py; this hides what the machine may have.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(GoalsError, match=r"jailbreakbench can't be downloaded from .* put it at"):
        load("jailbreakbench")
    assert files(cache) == []
