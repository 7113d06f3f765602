"""Judging models that reply as a test says."""

import pytest
from speaking import speaking


@pytest.fixture
def judge_that_says():
    """`speaking`: replies -> (model, the messages of every call)."""
    return speaking
