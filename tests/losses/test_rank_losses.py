"""Losses on a teacher's order and margins, each against a loop over lists that spells out its formula."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, rankdata

from d2llm.errors import InputError
from d2llm.loss_weights import RANKS, LossWeights
from d2llm.losses import d2llm_loss
from d2llm.rank_losses import RANK_LOSSES


def softmax(row):
    powers = [math.exp(x - max(row)) for x in row]
    return [power / sum(powers) for power in powers]


def of_ranknet(z, t, temperature):
    ordered = [(a, b) for a, b in itertools.permutations(range(len(z)), 2) if t[a] > t[b]]
    terms = [math.log(1 + math.exp(-(z[a] - z[b]) / temperature)) for a, b in ordered]
    return sum(terms) / max(1, len(terms)), bool(terms)


def of_listnet(z, t, temperature):
    return entropy(softmax(t), softmax([x / temperature for x in z])), 1


def of_margin_mse(z, t, temperature):
    terms = [((z[0] - z[k]) / temperature - (t[0] - t[k])) ** 2 for k in range(1, len(z))]
    return sum(terms), len(terms)


def of_adr_mse(z, t, temperature):
    total = 0.0
    for a, rank in enumerate(rankdata([-x for x in t])):
        others = (z[b] - z[a] for b in range(len(z)) if b != a)
        smooth = 1 + sum(1 / (1 + math.exp(-x / temperature)) for x in others)
        total += (rank - smooth) ** 2 / math.log2(rank + 1)
    return total, len(z)


#: The sum over a row and what it adds to the denominator, of the passages that take part.
FORMULAS = {"ranknet": of_ranknet, "listnet": of_listnet, "margin_mse": of_margin_mse, "adr_mse": of_adr_mse}
shapes = st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 2**31 - 1))


@pytest.mark.parametrize("name", RANKS)
@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(0.2, 3))
def test_formula(name, shape, temperature):
    batch, negatives, seed = shape
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 1 + negatives, generator=generator)
    # Whole numbers, some of which are equal.
    t = torch.randint(-2, 3, z.shape, generator=generator).float()
    absent = torch.rand(z.shape, generator=generator) < 0.2
    unjudged = torch.rand(z.shape, generator=generator) < 0.2
    total, count = 0.0, 0.0
    for i in range(batch):
        kept = [k for k in range(1 + negatives) if not absent[i, k] and not unjudged[i, k]]
        if len(kept) > 1 and kept[0] == 0:
            found, size = FORMULAS[name]([z[i, k].item() for k in kept], [t[i, k].item() for k in kept], temperature)
            total, count = total + found, count + size
    t = t.masked_fill(unjudged, math.nan)
    z = z.masked_fill(absent, math.nan)
    assert RANK_LOSSES[name](z, t, ~absent, temperature).item() == pytest.approx(total / max(1, count), abs=1e-4)


@pytest.mark.parametrize("name", RANKS)
def test_gradients(name):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    t[1, 2], t[2, 0] = math.nan, math.nan
    assert torch.autograd.gradcheck(lambda z: RANK_LOSSES[name](z, t, None, 0.7), z)
    RANK_LOSSES[name](z, t.requires_grad_()).backward()
    assert (z.grad[0] != 0).all() and z.grad[1, 2] == 0 and (z.grad[2] == 0).all() and t.grad is None


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("size", [0.0, 3e4])
def test_extreme_logits_give_finite_gradients(name, size):
    z = (size * torch.tensor([[1.0, -1.0, 0.0]])).requires_grad_()
    loss = RANK_LOSSES[name](z, size * torch.tensor([[-1.0, 1.0, 1.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", ["listnet", "margin_mse"])
def test_a_student_that_agrees_has_nothing_to_learn(name):
    t = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    assert RANK_LOSSES[name](t + 3, t).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_is_summed_in_float32():
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    t = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    for loss in RANK_LOSSES.values():
        assert loss(z, t).dtype == torch.float32
        torch.testing.assert_close(loss(z, t), loss(z.float(), t), rtol=0, atol=0)


def test_a_configuration_chooses_one_and_weighs_it():
    generator = torch.Generator().manual_seed(4)
    z, t, square = (torch.randn(*shape, generator=generator) for shape in ((3, 4), (3, 4), (3, 3)))
    for name in RANKS:
        weights = LossWeights(rank=name, rank_weight=0.5, rank_temperature=2.0)
        total, parts = d2llm_loss(z, square, log_odds=t, weights=weights)
        torch.testing.assert_close(parts["rank"], RANK_LOSSES[name](z, t, None, 2.0) / 2)
        torch.testing.assert_close(total, sum(parts.values()))
    assert "rank" not in d2llm_loss(z, square, log_odds=t)[1]
    with pytest.raises(InputError, match="rank: expected one of .*lambdarank"):
        LossWeights(rank="lambdarank")
    assert RANK_LOSSES.keys() == set(RANKS)
