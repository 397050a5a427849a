"""Exceptions that name the argument, what was expected and what came."""


class D2LLMError(Exception):
    """Base of every error that a user of the package can cause and mend."""


class InputError(D2LLMError, ValueError):
    """An argument or a text that cannot be used as given."""


class BusyError(InputError):
    """Something that another process is writing: the same call may succeed later."""


class FormatError(D2LLMError, ValueError):
    """A file that is malformed, truncated or altered."""


class MismatchError(D2LLMError, ValueError):
    """Two things that were not made for each other, such as scores of another teacher."""


class MissingError(D2LLMError, FileNotFoundError):
    """A file, folder or optional package that is needed and absent."""


#: Characters of a value that a message shows.
_SHOWN = 200


def shown(value: object) -> str:
    """A value as a message shows it: cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # A whole number of thousands of digits, or lists in lists without end.
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
