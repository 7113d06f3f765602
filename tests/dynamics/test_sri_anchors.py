"""Anchors: equal to plain means, kept with their settings, and refused where these differ or the file is bad."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import lora
from safetensors.numpy import load_file, save_file

import midward
from midward.dynamics import Anchors, AnchorsError, AnchorsMismatch, PooledStates, fit_anchors
from midward.errors import InputError
from midward.sampling import Sampling, sample

SAMPLING = Sampling(length=8, steps=4)
HARMLESS = [[n, n + 1, n + 2] for n in range(20, 27)]
HARMFUL = [[n] * (1 + n % 4) for n in range(40, 47)]


def refused(text):
    """Some rule about the text; None, which counts nowhere, for some."""
    return None if len(text) % 5 == 0 else len(text) % 2 == 0


@pytest.fixture(scope="session")
def fitted(exact):
    [anchors] = fit_anchors(exact, HARMLESS, HARMFUL, refused=refused, sampling=SAMPLING, batch_size=3).values()
    return anchors


def test_anchors_are_means_over_the_right_generations(exact, fitted):
    means, counts = [], []
    for prompts, wanted in ((HARMLESS, False), (HARMFUL, True)):
        kept = []
        for prompt in prompts:
            states = PooledStates()
            [response] = sample(exact, [prompt], SAMPLING, watchers=[states])
            if refused(response.text) is wanted:
                kept.append(states.states(0))
        assert 0 < len(kept) < len(prompts)
        means.append(torch.stack(kept).mean(0).float())
        counts.append(len(kept))
    assert fitted.counts == tuple(counts)
    assert torch.allclose(fitted.mu_harmless, means[0], atol=1e-6)
    assert torch.allclose(fitted.mu_harmful, means[1], atol=1e-6)


def test_layers_are_fitted_from_the_same_generations(exact, fitted):
    views = [(reading, layer) for reading in ("response", "generated") for layer in (0, -1)]
    all_four = fit_anchors(exact, HARMLESS, HARMFUL, refused=refused, sampling=SAMPLING, views=views)
    assert torch.allclose(all_four["response", -1].mu_harmless, fitted.mu_harmless, atol=1e-6)
    assert fitted.reading == "response"  # as the published code pools
    for view, anchors in all_four.items():
        assert (anchors.reading, anchors.layer) == view
        others = [other for name, other in all_four.items() if name != view]
        assert not any(torch.allclose(anchors.mu_harmless, other.mu_harmless) for other in others)


def test_a_fit_that_was_stopped_goes_on_to_the_same_anchors(exact, tmp_path):
    views, fits = [("response", 0), ("response", -1)], {}
    options = {"refused": refused, "sampling": SAMPLING, "views": views, "batch_size": 3}

    def unfinished(kept):
        return list(kept.parent.glob("*.unfinished"))

    for stop in (None, 2, 4):  # stopped among the harmless prompts, and among the harmful ones
        kept = tmp_path / f"stop {stop}" / "anchors"
        seen = []

        def noted(done, of, seen=seen):
            seen.append(done)

        def told(done, of, stop=stop):
            if done >= 3 * (stop or 99):
                raise KeyboardInterrupt

        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit_anchors(exact, HARMLESS, HARMFUL, kept=kept, progress=told, **options)
            assert unfinished(kept)
        fits[stop] = fit_anchors(exact, HARMLESS, HARMFUL, kept=kept, progress=noted, **options)
        assert seen == [n for n in (0, 3, 6, 7, 10, 13, 14) if n >= 3 * (stop or 0)]
        assert len(list(kept.parent.iterdir())) == 2
    for stop in (2, 4):
        for view, anchors in fits[stop].items():
            assert anchors.digest == fits[None][view].digest
    again = fit_anchors(exact, HARMLESS, HARMFUL, kept=kept, **{**options, "refused": None})
    assert [each.digest for each in again.values()] == [each.digest for each in fits[4].values()]
    other = tmp_path / "other" / "anchors"
    with pytest.raises(AnchorsError, match="harmful prompts was refused"):
        fit_anchors(exact, HARMLESS, HARMFUL, kept=other, **{**options, "refused": lambda text: False})
    assert not list(other.parent.iterdir())  # all was sampled: there is nothing to go on with


def test_nothing_to_average(exact):
    with pytest.raises(AnchorsError, match="none of the 7 harmful prompts was refused"):
        fit_anchors(exact, HARMLESS, HARMFUL, refused=lambda text: False, sampling=SAMPLING)


def test_what_is_saved_is_what_is_loaded(exact, fitted, tmp_path):
    loaded = Anchors.load(fitted.save(tmp_path / "new" / "anchors.safetensors"))
    assert loaded.record() == fitted.record()
    assert torch.equal(loaded.mu_harmless, fitted.mu_harmless)
    assert torch.equal(loaded.mu_harmful, fitted.mu_harmful)
    loaded.check(exact, SAMPLING)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["anchors.safetensors"]
    older = Anchors.rebuild(fitted.tensors(), {**fitted.record(), "region": "response"}, "an older file")
    assert older.digest == fitted.digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"length": 6, "steps": 4}, "length 8 there, 6 here"),
        ({"steps": 5}, "steps 4 there, 5 here"),
        ({"block": 4}, "block None there, 4 here"),
        ({"order": "random"}, "order 'low_confidence' there, 'random' here"),
        ({"threshold": 0.5}, "threshold None there, 0.5 here"),
        ({"temperature": 0.5}, "temperature 0.0 there, 0.5 here"),
        ({"guidance": 1.0}, "guidance 0.0 there, 1.0 here"),
        ({"end": "keep"}, "end 'stop' there, 'keep' here"),
    ],
)
def test_other_sampling_is_refused(exact, fitted, change, told):
    with pytest.raises(AnchorsMismatch, match=told):
        fitted.check(exact, replace(SAMPLING, **change))


def test_other_model_and_adapter_are_refused(lively, lively_folder, fitted):
    with pytest.raises(AnchorsMismatch, match=r"the model .* there, .* here"):
        fitted.check(lively, SAMPLING)
    exact = midward.load(lively_folder, device="cpu", dtype=torch.float64)
    lora(exact)
    exact.adapter = "adapters/some"
    with pytest.raises(AnchorsMismatch, match="adapters/some"):
        fitted.check(exact, SAMPLING)


def test_truncated_and_foreign_files(fitted, tmp_path, llada_folder):
    path = fitted.save(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for length in (0, 5, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="no file of anchors"):
            Anchors.load(path)
    with pytest.raises(InputError, match="no file of anchors"):
        Anchors.load(llada_folder / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        Anchors.load(tmp_path / "none.safetensors")


BAD_SETTINGS = [
    {"sampling": {"length": 8}},
    {"sampling": {"length": "8"}},
    {"sampling": 7},
    {"sampling": {"lenght": 8}},
    {"counts": [0, 3]},
    {"counts": 4},
    {"eps": -1.0},
    {"eps": None},
    {"layer": "last"},
    {"layer": True},
    {"reading": "x"},
    {"reading": []},
    {"region": "prompt"},
    {"needs_all_steps": "yes"},
    {"model": 5},
    {"adapter": 5},
    {"fingerprint": None},
    {"surplus": 1},
]


@pytest.mark.parametrize("change", BAD_SETTINGS, ids=str)
def test_hostile_settings(fitted, tmp_path, change):
    path = tmp_path / "a.safetensors"
    record = json.dumps({**fitted.record(), **change})
    save_file(fitted.tensors(), path, metadata={"format": "midward sri anchors 1", "settings": record})
    with pytest.raises(AnchorsError, match="holds no proper anchors"):
        Anchors.load(path)


@pytest.mark.parametrize("settings", ["", "null", "[]", "{", "[" * 100_000, '{"counts": NaN}'])
def test_settings_that_are_no_record(fitted, tmp_path, settings):
    path = tmp_path / "a.safetensors"
    save_file(fitted.tensors(), path, metadata={"format": "midward sri anchors 1", "settings": settings})
    with pytest.raises(InputError):
        Anchors.load(path)


def test_hostile_numbers(fitted, tmp_path):
    path = fitted.save(tmp_path / "a.safetensors")
    good = load_file(path)
    metadata = {"format": "midward sri anchors 1", "settings": json.dumps(fitted.record())}
    broken = good["mu_harmful"].copy()
    broken[1, 2] = np.nan
    bad = [
        {**good, "mu_harmful": broken},
        {**good, "mu_harmful": np.ascontiguousarray(good["mu_harmful"][:, :-1])},
        {**good, "mu_harmful": good["mu_harmful"].astype(float)},
        {name: tensor[:3] for name, tensor in good.items()},
        {name: tensor[0] for name, tensor in good.items()},
        {"mu_harmless": good["mu_harmless"]},
    ]
    for tensors in bad:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(AnchorsError, match="holds no proper anchors"):
            Anchors.load(path)
