"""What a certificate promises, by brute force and over many samples; what an audit takes for refuted."""

import math

import pytest
import torch

from d2llm.index.certificate import Audit, Certificate


def sampled(queries: int, k: int, seed: int = 0) -> Certificate:
    """Needs of heavy tails, over 1,000 passages."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(1000, generator=draw)[:k] for _ in range(queries)])
    needed = (1 / torch.rand(queries, k, generator=draw)).long()
    return Certificate(places, needed)


def promises(missed: torch.Tensor, recall: float) -> bool:
    return math.prod((1 + (1 - recall) - missed).tolist()) >= 20


@pytest.mark.parametrize("k,recall", [(10, 0.9), (3, 0.9), (10, 0.8), (1, 0.95)])
def test_it_is_the_fewest_candidates_that_pass(k, recall):
    certificate = sampled(200, 10)
    found = certificate.candidates(k, recall, torch.zeros(1000, dtype=torch.bool))
    missed = [(certificate.needed[:, :k] > c).float().mean(1) for c in (found, found - 1)]
    assert promises(missed[0], recall) and not promises(missed[1], recall)


def test_what_is_deleted_makes_room_for_the_next():
    certificate, deleted = sampled(200, 20), torch.zeros(1000, dtype=torch.bool)
    deleted[::7] = True
    rows = zip(certificate.places.tolist(), certificate.needed.tolist(), strict=True)
    kept = [[n for p, n in zip(*row, strict=True) if not deleted[p]][:5] for row in rows]
    expected = Certificate(torch.arange(1000).view(200, 5), torch.tensor(kept))
    found = certificate.candidates(5, 0.9, deleted)
    assert found == expected.candidates(5, 0.9, torch.zeros(1000, dtype=torch.bool))


def test_nothing_is_promised_beyond_the_sample():
    none = torch.zeros(1000, dtype=torch.bool)
    assert sampled(301, 10).candidates(10, 0.99, none) is None
    found = Certificate(*(each[:1].expand(302, 10) for each in vars(sampled(1, 10)).values()))
    assert found.candidates(10, 0.99, none) == int(found.needed.max())
    assert sampled(400, 10).candidates(11, 0.9, none) is None
    assert sampled(400, 10).candidates(6, 0.9, ~none) is None
    assert Certificate(*torch.zeros(2, 0, 10, dtype=torch.int64)).candidates(1, 0.5, none) is None


def test_a_promise_fails_in_one_sample_of_twenty_at_most():
    """Of 100 samples of 400 queries; the true mean share of what needs no more than c is 1 - 1 / (c + 1)."""
    none = torch.zeros(1000, dtype=torch.bool)
    chosen = [sampled(400, 10, seed).candidates(10, 0.98, none) for seed in range(100)]
    broken = [c for c in chosen if c is not None and 1 / (c + 1) > 0.02]
    assert None not in chosen and len(broken) <= 9


def test_an_audit_refutes_what_does_not_hold_and_little_else():
    draw = torch.Generator().manual_seed(0)

    def refuted(share: float) -> bool:
        audit = Audit()
        assert sum(audit.due(0.25) for _ in range(40)) == 10
        missed = (torch.rand(400, 10, generator=draw) < share).float().mean(1)
        return any([audit.add(each, 0.99) for each in missed.tolist()])

    assert all(refuted(0.05) for _ in range(20))
    assert sum(refuted(0.01) for _ in range(100)) <= 8
