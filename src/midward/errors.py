"""What bad input raises. Anything else that comes out of midward is a fault of ours and keeps its traceback."""


class MidwardError(Exception):
    """Base of every error that the caller can mend: the message says what was wrong, the value, and what to do."""


class InputError(MidwardError, ValueError):
    """An argument, a setting or the content of a file can't be used."""


class MissingFile(MidwardError, FileNotFoundError):
    """A file or folder that was named isn't there."""
