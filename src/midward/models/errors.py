"""The one exception of this room."""

from midward.errors import MidwardError


class ModelError(MidwardError):
    """A checkpoint or an adapter can't be used; the message says what was wrong and what to do."""
