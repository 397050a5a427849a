"""Each loss against a loop that spells out its published formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from d2llm import losses
from d2llm.loss_weights import LossWeights

batches = st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**31 - 1))


def draw(batch: int, negatives: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    group = 1 + negatives
    teacher = torch.nn.functional.normalize(normal(batch, group, 7), dim=-1)
    return {
        "z": normal(batch, group),
        "z_in_batch": normal(batch, batch),
        "s": torch.rand(batch, group, generator=generator),
        "s_in_batch": torch.rand(batch, batch, generator=generator),
        "features": normal(batch, group, 5),
        "teacher_relation": teacher @ teacher.transpose(1, 2),
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@settings(max_examples=40, deadline=None)
@given(batches, st.floats(0.1, 5), st.sampled_from([("mean", 1), ("paper", 2)]))
def test_in_batch(shape, temperature, form):
    name, power = form
    scores = draw(*shape)["z_in_batch"]
    rows = scores.double().numpy() / temperature
    expected = sum(-math.log(math.exp(row[i]) / np.exp(row).sum()) for i, row in enumerate(rows))
    actual = losses.in_batch_loss(scores, temperature=temperature, form=name)
    assert actual.item() == pytest.approx(expected / len(rows) ** power, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches, st.floats(0.1, 5))
def test_contrastive_imitation(shape, temperature):
    data = draw(*shape)
    z, s = data["z"].double().numpy(), data["s"].double().numpy()
    batch, negatives = len(z), z.shape[1] - 1
    total = 0.0
    for i in range(batch):
        terms = [math.exp(s[i, 0] * z[i, 0] / temperature)]
        terms += [math.exp((1 - s[i, k]) * z[i, k] / temperature) for k in range(1, 1 + negatives)]
        total -= math.log(terms[0] / sum(terms))
    expected = total / (batch * negatives) if negatives else 0.0
    actual = losses.contrastive_imitation(data["z"], data["s"], temperature=temperature)
    assert actual.item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches, st.floats(0.1, 5), st.floats(0, 1))
def test_label_contrastive(shape, temperature, share):
    data = draw(*shape)
    z, judged = data["z"].double().numpy() / temperature, data["s"] < 0.5
    total = 0.0
    for i, row in enumerate(z):
        unjudged = [row[k] for k in range(1, len(row)) if not (judged[i, 0] and judged[i, k])]
        for weight, negatives in ((1 - share, unjudged), (share, row[1:])):
            total -= weight * math.log(math.exp(row[0]) / sum(map(math.exp, [row[0], *negatives])))
    actual = losses.label_contrastive(data["z"], judged=judged, share=share, temperature=temperature)
    assert actual.item() == pytest.approx(total / len(z), rel=1e-5, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches)
def test_rank_imitation_correlation(shape):
    data = draw(*shape)
    z, s = data["z"].double().numpy(), data["s"].double().numpy()
    rows = zip(z, s, strict=True)
    expected = float(np.mean([1 - pearsonr(a, b)[0] for a, b in rows])) if z.shape[1] > 1 else 0.0
    assert losses.rank_imitation_correlation(data["z"], data["s"]).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches, st.floats(0.1, 5))
def test_rank_imitation_pairwise(shape, scale):
    data = draw(*shape)
    z, s, zb, sb = (data[name].double().numpy() for name in ("z", "s", "z_in_batch", "s_in_batch"))
    batch, negatives = len(z), z.shape[1] - 1
    total = 0.0
    for i in range(batch):
        for h in range(1, 1 + negatives):
            for e in range(batch):
                if e != i:
                    total -= max(0.0, s[i, h] - sb[i, e]) / scale * math.log(sigmoid(z[i, h] - zb[i, e]))
    expected = total / (batch * negatives * (batch - 1)) if negatives and batch > 1 else 0.0
    actual = losses.rank_imitation_pairwise(data["z"], data["z_in_batch"], data["s"], data["s_in_batch"], scale=scale)
    assert actual.item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches)
def test_feature_imitation(shape):
    data = draw(*shape)
    r, teacher = data["features"].double().numpy(), data["teacher_relation"].double().numpy()
    batch, group = r.shape[:2]
    total = 0.0
    for i in range(batch):
        for a in range(group):
            for b in range(group):
                cosine = r[i, a] @ r[i, b] / (np.linalg.norm(r[i, a]) * np.linalg.norm(r[i, b]))
                total += (teacher[i, a, b] - cosine) ** 2
    actual = losses.feature_imitation(data["features"], data["teacher_relation"])
    assert actual.item() == pytest.approx(total / group**2, abs=1e-5)


def test_total_is_the_weighted_sum_of_all_parts():
    data = draw(4, 3, 0)
    weights = LossWeights(
        in_batch=2, alpha=3, beta=5, gamma=7, eta=11, labels=13, label_share=0.5, temperature=2, scale=3
    )
    total, parts = losses.d2llm_loss(**data, weights=weights)
    z, s = data["z"], data["s"]
    expected = {
        "in_batch": 2 * losses.in_batch_loss(data["z_in_batch"]),
        "labels": 13 * 0.5 * losses.label_contrastive(z, temperature=2),
        "contrastive": 3 * 0.5 * losses.contrastive_imitation(z, s, temperature=2),
        "rank_correlation": 5 * losses.rank_imitation_correlation(z, s),
        "rank_pairwise": 7 * losses.rank_imitation_pairwise(z, data["z_in_batch"], s, data["s_in_batch"], scale=3),
        "feature": 11 * losses.feature_imitation(data["features"], data["teacher_relation"]),
    }
    assert list(parts) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
        assert not parts[name].requires_grad
    torch.testing.assert_close(total, torch.stack(list(expected.values())).sum())


def test_the_in_batch_loss_is_a_mean_over_queries_whatever_the_batch_size():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).repeat(8, 8)
    # Eight times the batch of the same scores: each query has its rivals eightfold and no other loss of its own.
    few, many = (losses.d2llm_loss(s[:, :1], s, duplicates=None)[0] for s in (scores[:4, :4], scores))
    torch.testing.assert_close(many, few + math.log(8))


def test_the_papers_form_is_there_by_name():
    data = draw(4, 3, 0)
    mean, paper = (LossWeights(alpha=0, beta=0, gamma=0, eta=0, in_batch_form=f) for f in ("mean", "paper"))
    mean, paper = (losses.d2llm_loss(**data, weights=weights)[0] for weights in (mean, paper))
    torch.testing.assert_close(paper, mean / 4)


def test_published_weights_are_the_defaults():
    weights = LossWeights()
    assert (weights.in_batch, weights.alpha, weights.beta, weights.gamma, weights.eta) == (1, 1, 1, 0.01, 0.001)
    assert (weights.temperature, weights.in_batch_temperature, weights.scale) == (1, 1, 1)
    assert weights.cosine == 0


def test_cosines_of_the_embeddings_are_a_part_where_they_weigh():
    data, embeddings = draw(4, 3, 0), torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    near = losses.cosines(*embeddings)
    torch.testing.assert_close(near, torch.cosine_similarity(embeddings[0][:, None], embeddings[1][None], dim=-1))
    for form, share in (("mean", 1), ("paper", 4)):
        weights = LossWeights(cosine=3, cosine_temperature=0.1, in_batch_form=form)
        total, parts = losses.d2llm_loss(**data, embedding_cosines=near, weights=weights)
        expected = 3 * torch.nn.functional.cross_entropy(near / 0.1, torch.arange(4)) / share
        torch.testing.assert_close(parts["cosine"], expected)
        torch.testing.assert_close(total, torch.stack(list(parts.values())).sum())
    assert "cosine" not in losses.d2llm_loss(**data, embedding_cosines=near)[1]


def test_without_teacher_labels_remain():
    data = draw(4, 3, 0)
    total, parts = losses.d2llm_loss(data["z"], data["z_in_batch"])
    assert list(parts) == ["in_batch", "labels"]
    torch.testing.assert_close(total, losses.in_batch_loss(data["z_in_batch"]) + losses.label_contrastive(data["z"]))


def test_gradients_are_those_of_finite_differences():
    data = {name: value.double() for name, value in draw(3, 2, 1).items()}
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)

    def total(z, z_in_batch, features):
        changed = data | {"z": z, "z_in_batch": z_in_batch, "features": features}
        weights = LossWeights(gamma=1, eta=1)
        return losses.d2llm_loss(**changed, valid=valid, weights=weights)[0]

    inputs = [data[name].requires_grad_() for name in ("z", "z_in_batch", "features")]
    assert torch.autograd.gradcheck(total, inputs)
