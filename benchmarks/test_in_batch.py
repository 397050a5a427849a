"""The losses over all pairs of a batch."""

from collections.abc import Iterator

from d2llm_kernels.measure.case import Case
from d2llm_kernels.measure.in_batch import losses

_HARD = 8


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for batch in (32, 128, 512, 1024, 2048, 4096, 8192) if full else (32, 512, 2048):
        # Literally, the triples of the largest batches do not fit.
        yield losses(batch, _HARD, literal=batch <= 4096)


def test_in_batch(outcome):
    assert "failure" not in outcome, outcome["failure"]
