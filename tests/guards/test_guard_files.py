"""Guards on the disk: what was written comes back; everything else is refused, saying what differs."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import lora
from guard_world import LENGTH, STEPS, prompts
from safetensors.numpy import load_file, save_file

import midward
from midward.dynamics.looks import GRID
from midward.errors import InputError
from midward.guards import Exchange, GuardError, MaskFilter, PerplexityFilter, describe, load, make, save
from midward.sampling import Request, Sampling

FORMAT = "midward.guard/2"


@pytest.fixture(scope="module")
def energy(model, sampling, tmp_path_factory):
    """The file of a guard by blocks, trained on noise."""
    rng = np.random.default_rng(0)
    signals, guard = rng.normal(size=(40, 2, len(GRID), 4)), make("energy")
    guard.openings = (3, 4), (5, 6)
    guard.bind(model, sampling)
    guard.train(None, signals)
    guard.calibrate(guard.score(None, [Exchange(Request("-"), "-", each) for each in signals]), 0.1)
    guard.trace = signals[0]
    return save(guard, tmp_path_factory.mktemp("energy") / "energy.safetensors")


@pytest.fixture
def rewritten(fitted, energy, tmp_path):
    """A copy of a guard's file with parts changed, SRI's unless told otherwise."""

    def copy(tensors=None, metadata=None, of="sri", **changes):
        path = energy if of == "energy" else fitted[1]
        found = load_file(path)
        for name, value in (tensors or {}).items():
            every = [each for each in found if each.startswith("tail.")] if name == "tails" else [name]
            found |= {each: value(found[each]) if callable(value) else value for each in every}
        found = {name: value for name, value in found.items() if value is not None}
        described = describe(path)
        described["bound"]["sampling"] |= changes.pop("sampling", {})
        described |= changes
        other = tmp_path / "other.safetensors"
        save_file(found, other, metadata=metadata or {"format": FORMAT, "about": json.dumps(described)})
        return other

    return copy


def test_a_folder_stands_for_its_only_guard_or_for_sri_and_others_are_told(fitted, tmp_path):
    guard, _ = fitted
    save(guard, tmp_path / "of-one.safetensors")
    (tmp_path / "anchors.safetensors").write_bytes(b"")
    assert load(tmp_path).digest == guard.digest
    save(guard, tmp_path / "another.safetensors")
    with pytest.raises(GuardError, match=r"holds several guards; give one of them: .*another.safetensors, .*of-one"):
        load(tmp_path)
    save(guard, tmp_path / "sri.safetensors")
    assert load(tmp_path).digest == guard.digest


def test_a_guard_comes_back_as_it_was(fitted, model, sampling):
    guard, path = fitted
    again = load(path, model, sampling)
    signals = np.random.default_rng(0).uniform(size=(20, STEPS))
    assert np.array_equal(again.score_signals(signals), guard.score_signals(signals))
    assert again.digest == guard.digest
    assert (again.threshold, again.alpha, again.calibrated) == (guard.threshold, 0.25, 20)
    assert load(path.parent, model).digest == guard.digest  # a folder stands for its sri.safetensors


def test_another_model_or_sampling_is_refused_by_name(fitted, model, sampling, llada, llada_folder):
    _, path = fitted
    with pytest.raises(GuardError, match=f"model .* there, '{llada_folder}' .* here"):
        load(path, llada)
    with pytest.raises(GuardError, match=r"length 16 there, 12 here; temperature 0\.0 there, 0\.5 here"):
        load(path, model, replace(sampling, length=12, temperature=0.5))
    assert load(path, model, replace(sampling, seed=7))


def test_the_same_model_with_an_adapter_is_another_model(fitted, lively_folder, tmp_path):
    _, path = fitted
    lora(midward.load(lively_folder, device="cpu"), tmp_path)
    with pytest.raises(GuardError, match=f"with adapter '{tmp_path}'"):
        midward.load(lively_folder, adapter=tmp_path, device="cpu", guard=path)


def test_torn_foreign_and_missing_files_are_refused(fitted, tmp_path, lively_folder):
    _, path = fitted
    whole = path.read_bytes()
    torn = tmp_path / "torn.safetensors"
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        torn.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged"):
            load(torn)
    torn.write_bytes(b"\x80\x04\x95 not a guard")  # how a pickle begins
    with pytest.raises(InputError, match="damaged"):
        load(torn)
    with pytest.raises(InputError, match="is no guard"):
        load(lively_folder / "model.safetensors")
    with pytest.raises(GuardError, match="there is no guard at"):
        load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guard": "sry"}, "there is no guard 'sry'. Did you mean 'sri'"),
        ({"guard": ["sri"]}, "about.guard"),
        ({"version": "0"}, "version '0'"),
        ({"settings": {"early": True, "evil": 1}}, "no setting 'evil'"),
        ({"settings": {"hidden": [10**9]}}, "weights are"),
        ({"settings": {"epochs": -1}}, "epochs"),
        ({"bound": {}}, "doesn't say for which adapter"),
        ({"bound": 3}, "about.bound"),
        ({"tensors": {"weight.0": np.zeros((3, 3))}}, "weights are"),
        ({"tensors": {"weight.1": None}}, "can be used"),
        ({"tensors": {"mean": np.full(STEPS, np.nan)}}, "finite"),
        ({"tensors": {"threshold": np.array([np.inf])}}, "finite"),
        ({"tensors": {"threshold": np.zeros(2)}}, "can be used"),
        ({"tensors": {"scale": np.zeros(STEPS)}}, "scale"),
        ({"tensors": {"anchors.mu_harmless": np.zeros((2, 2), np.float32)}}, "proper anchors"),
        *(
            ({"tensors": {"threshold": np.array([value])}}, "its threshold is")
            for value in (1e300, -1e300, 2**62, True)
        ),
        ({"of": "energy", "tensors": {"threshold": np.array([1e6])}}, "ranks are 0 to"),
        ({"of": "energy", "tensors": {"threshold": np.array([-1.0])}}, "ranks are 0 to"),
        *(({"alpha": value}, "about.alpha") for value in (-1, 0, 1, 5, float("nan"))),
        *(({"calibrated": value}, "about.calibrated") for value in (-3, 10**30)),
        ({"sampling": {"length": 10**12, "block": 8}}, "length is 1 to"),
        ({"of": "energy", "tensors": {"tails": lambda tail: tail[:, :1].copy()}}, r"tail.0.0 is \(40, 1\), not \[N, 3"),
        ({"of": "energy", "tensors": {"tail.2.5": lambda tail: np.hstack([tail, tail])}}, "tail.2.5 is .* not .N, 3"),
        ({"of": "energy", "tensors": {"tail.1.3": lambda tail: tail[::-1].copy()}}, "tail.1.3 must be sorted"),
        ({"of": "energy", "tensors": {"tails": lambda tail: tail.astype(np.int64)}}, "floats"),
        ({"of": "energy", "tensors": {"tails": lambda tail: tail[::-1].astype(np.uint8)}}, "sorted"),
        *(
            ({"of": "energy", "tensors": {name: change}}, f"{name} must be a row of token ids")
            for name in ("refusing", "complying")
            for change in (
                lambda ids: -ids,
                lambda ids: ids[None],
                lambda ids: ids[:0],
                lambda ids: ids.astype(np.float64),
            )
        ),
        ({"of": "energy", "tensors": {"complying": lambda ids: ids + 10**6}}, "holds the token 100000. in 'complying'"),
        ({"of": "energy", "tensors": {"self-test": lambda trace: trace[:, :3].copy()}}, "its self-test is"),
        ({"metadata": {"format": FORMAT, "about": "{"}}, "damaged"),
        ({"metadata": {"format": FORMAT, "about": "[" * 100_000}}, "damaged"),
        ({"metadata": {"format": "other", "about": "{}"}}, "format"),
    ],
)
def test_hostile_files_are_refused(rewritten, model, change, message):
    with pytest.raises(InputError, match=message):
        load(rewritten(**change), model)


@pytest.mark.parametrize(
    ("tensors", "doubt"),
    [
        ({}, "^$"),
        ({"threshold": np.array([50.0])}, "its threshold is 50"),
        ({"tails": lambda tail: tail * 1e6}, "nearer, at every look, than 90%"),
        ({"tails": lambda tail: tail[-1:] * 10}, "nearer, at every look"),
    ],
)
def test_what_nothing_real_reaches_is_in_doubt(rewritten, model, tensors, doubt):
    assert re.search(doubt, load(rewritten(of="energy", tensors=tensors), model).doubt)


def test_nothing_unfitted_is_saved(tmp_path):
    with pytest.raises(GuardError, match="isn't fitted yet"):
        save(MaskFilter(), tmp_path / "g.safetensors")


def test_a_rival_is_kept_with_what_it_was_calibrated_on(model, tmp_path, llada_folder, llada):
    held_out = [Exchange(Request(one)) for one in prompts(0, 12)]
    sampling = Sampling.for_model(model, length=LENGTH, steps=STEPS)
    guard = PerplexityFilter(reference=str(llada_folder), window=2, samples=4)
    guard.fit(model, held_out, alpha=0.1, sampling=sampling)
    again = load(save(guard, tmp_path / "g.safetensors"), model)
    assert again.settings == guard.settings and again.threshold == guard.threshold
    assert np.array_equal(again.score(model, held_out), guard.score(model, held_out))
    again.bound["reference"] = "0" * 16
    again = load(save(again, tmp_path / "g.safetensors"), model)
    with pytest.raises(GuardError, match="other weights"):
        again.score(model, held_out)
