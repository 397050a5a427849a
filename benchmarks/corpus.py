"""Real texts to run on: functions of Python's standard library and first sentences of their docstrings."""

from functools import cache

import torch

from d2llm.data.docstrings import standard_library_pairs
from d2llm.data.example import Example
from d2llm.demo.recipe import LLM_STUDENT
from d2llm.shipped import BASE_MODEL, STUDENT
from d2llm.student import D2LLM


@cache
def pairs() -> list[Example]:
    """Queries with the function that answers each, in a fixed random order."""
    found = standard_library_pairs()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[place] for place in order]


@cache
def student() -> D2LLM:
    """The shipped student."""
    return D2LLM.from_pretrained(STUDENT)


@cache
def llm_student() -> D2LLM:
    """One on the first layers of the LLM, as in the paper's setting; untrained, since only its time is asked for."""
    return D2LLM.create(BASE_MODEL, **LLM_STUDENT).eval()
