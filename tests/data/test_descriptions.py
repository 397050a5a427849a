"""Parameters and results in docstrings of the three usual layouts."""

import inspect

import pytest

from d2llm.data.descriptions import parameter_descriptions, result_description

_GOOGLE = """Do it.

    Args:
        path: the file, read
            to its end.
        count (int): how often.

    Returns:
        The text that was read.
    """
_NUMPY = """Do it.

    Parameters
    ----------
    path : str
        the file, read
        to its end.
    count : int, optional
        how often.

    Returns
    -------
    text : str
        The text that was read.
    """
_FIELDS = """Do it.

    :param path: the file, read
        to its end.
    :type path: str
    :param int count: how often.
    :returns: The text that was read.
    :rtype: str
    """


@pytest.mark.parametrize("docstring", [_GOOGLE, _NUMPY, _FIELDS], ids=["google", "numpy", "fields"])
def test_every_layout_says_the_same(docstring: str) -> None:
    docstring = inspect.cleandoc(docstring)
    assert parameter_descriptions(docstring) == ["the file, read to its end.", "how often."]
    assert result_description(docstring) == "The text that was read."


def test_plain_docstrings_have_no_descriptions() -> None:
    text = "Return the parameters.\n\nReturns nothing else: see Args."
    assert parameter_descriptions(text) == [] and result_description(text) == ""
