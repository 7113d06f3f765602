"""What an extra brings is named where it is missing."""

from inspect_ai._util.error import pip_dependency_error
from inspect_ai.model._providers.util.util import environment_prerequisite_error

from midward._asking import unavailable


def test_a_model_that_cannot_be_had_is_told_in_our_words():
    assert unavailable(pip_dependency_error("OpenAI API", ["openai"])) == (
        "the package openai isn't installed: pip install 'midward[served]'"
    )
    assert unavailable(environment_prerequisite_error("OpenAI", ["OPENAI_API_KEY"])) == (
        "OPENAI_API_KEY isn't set; export it with your key (for a local server without keys, any word)"
    )
    assert unavailable(ValueError("Model API [nobody] not recognized.")) == ("Model API [nobody] not recognized.")
