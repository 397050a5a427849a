"""Fixtures of the kernels' tests, and the mark of those that are about the C++ kernels alone."""

import pytest
import torch
from torch import Tensor

import d2llm_kernels as dk
from d2llm.data.example import Example
from d2llm.demo.library import library_vectors
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM
from d2llm_kernels import backends
from tests.kernels.cases import branch_of


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    """Run the test with this number of torch's threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or before)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(library_pairs: tuple[Example, ...]) -> tuple[dk.IEM, Tensor, Tensor]:
    """The shipped student's interaction module, 16 projected queries and all projected functions of the library."""
    student = D2LLM.from_pretrained(STUDENT)
    passages = list(dict.fromkeys(pair.positive for pair in library_pairs))
    asked = library_pairs[:: len(library_pairs) // 16][:16]
    queries = student.encode([pair.query for pair in asked], kind="query")
    iem = student.iem.float().requires_grad_(False)
    vectors = torch.from_numpy(library_vectors(student, passages))
    return iem, iem.project_queries(torch.as_tensor(queries)), iem.project_passages(vectors)


@pytest.fixture(scope="session")
def best_hundred(trained: tuple[dk.IEM, Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Of each task the best hundred of all passages, exactly: scores and indices."""
    iem, a, b = trained
    return [dk.functional.iem_topk(a, b, *branch_of(iem, task), 100) for task in (0, 1)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: about the C++ kernels alone; `tools/sanitize` runs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = backends.missing("cpu")
    for item in items:
        if "trained" in getattr(item, "fixturenames", ()):
            # `tools/sanitize` leaves it out: products of millions, to see how well they rank.
            item.extra_keyword_matches.add("trained")
        if reason and item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
