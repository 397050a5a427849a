import threading

import pytest
import torch

from d2llm.side_by_side import side_by_side

CPU = torch.device("cpu")


def test_as_many_batches_are_in_hand_as_there_are_threads_and_each_has_one(two_threads):
    meeting = threading.Barrier(2, timeout=60)

    def run(batch):
        meeting.wait()
        return batch, torch.get_num_threads()

    assert list(side_by_side(run, range(4), CPU)) == [(batch, 1) for batch in range(4)]
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_few_batches_have_all_threads_one_after_the_other(two_threads):
    assert list(side_by_side(lambda batch: (batch, torch.get_num_threads()), range(3), CPU)) == [
        (0, 2),
        (1, 2),
        (2, 2),
    ]


def test_a_caller_says_how_many_batches_are_enough(two_threads):
    assert list(side_by_side(lambda batch: torch.get_num_threads(), range(2), CPU, enough=1)) == [1, 1]


def test_an_error_in_one_batch_ends_all_and_leaves_the_threads_as_they_were(two_threads):
    never, begun = threading.Event(), []

    def run(batch):
        begun.append(batch)
        if batch == 0:
            raise ValueError(f"batch {batch}")
        # Nobody sets it: a batch takes long enough that all 1,000 could not have begun when the error comes.
        never.wait(0.1)

    with pytest.raises(ValueError, match="batch 0"):
        list(side_by_side(run, range(1000), CPU))
    assert len(begun) < 1000 and torch.get_num_threads() == 2
