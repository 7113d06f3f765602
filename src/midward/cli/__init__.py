"""Verbs and flags, nothing else: one file a verb, all the work is done by the rooms below.

`midward --help` imports no torch: what is heavy is imported inside the verbs.
"""

from midward.cli._app import app, main

__all__ = ["app", "main"]
