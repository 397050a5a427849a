"""What the tests with other projects' packages share: the shipped student, in the number type that all of them use."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(scope="session")
def student():  # type: ignore[no-untyped-def]
    """The shipped student in float32."""
    import torch

    from d2llm import D2LLM
    from d2llm.shipped import STUDENT

    return D2LLM.from_pretrained(STUDENT, dtype=torch.float32)
