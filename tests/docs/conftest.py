"""What the tests of the documentation share."""

import pytest


@pytest.fixture(scope="session")
def midward_verbs() -> list[str]:
    """`midward VERB` for every verb that there is."""
    import typer

    from midward.cli import app

    def walk(command, words):
        inside = getattr(command, "commands", None)
        if inside is None or command.invoke_without_command:
            yield " ".join(words)
        for name, one in (inside or {}).items():
            yield from walk(one, (*words, name))

    return [verb for verb in walk(typer.main.get_command(app), ("midward",)) if verb != "midward"]
