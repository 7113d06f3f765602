"""What errors share."""

import pytest

from midward._hints import did_you_mean, near_path
from midward.alignment import AlignError, resolve
from midward.sampling import Sampling


def test_the_nearest_name_and_what_other_libraries_call_it():
    assert did_you_mean("lenght", ["length", "steps"]) == " Did you mean 'length'?"
    assert did_you_mean("max_new_tokens", ["length", "steps"]) == " Did you mean 'length'?"
    assert did_you_mean("max_new_tokens", ["seed"]) == ""


def test_settings_under_the_names_of_other_libraries(llada):
    with pytest.raises(TypeError, match="Did you mean 'length'"):
        Sampling.for_model(llada, max_new_tokens=8)
    with pytest.raises(TypeError, match="Did you mean 'guidance'"):
        Sampling.for_model(llada, cfg_scale=1.0)
    with pytest.raises(AlignError, match="Did you mean 'lr'"):
        resolve({"learning_rate": 1e-3})


def test_a_path_that_isnt_there_comes_with_one_of_its_kind(tmp_path):
    (tmp_path / "runs.csv").touch()
    (tmp_path / "runs").mkdir()
    wanted = {None: "runs.csv", False: "runs.csv", True: "runs"}
    for folder, near in wanted.items():
        assert near_path(tmp_path / "run.csv", folder=folder) == f" Did you mean {str(tmp_path / near)!r}?"
