"""What the tests of the documentation share."""

import pytest

from midward.cli._app import VERBS


@pytest.fixture(scope="session")
def midward_verbs() -> list[str]:
    """`midward VERB` for every verb that there is."""
    return [f"midward {verb}" for verb in VERBS]
