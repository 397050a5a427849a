"""Where the published formulas overflow, divide by zero or do not say: the defined results."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm import losses
from d2llm.errors import InputError
from d2llm.loss_weights import LossWeights

GENERATOR = torch.Generator().manual_seed(0)


def total_and_gradients(**inputs):
    leaves = {name: inputs[name].detach().requires_grad_() for name in ("z", "z_in_batch", "features")}
    total, _ = losses.d2llm_loss(**(inputs | leaves), weights=LossWeights(gamma=1, eta=1))
    total.backward()
    return total, {name: leaf.grad for name, leaf in leaves.items()}


def batch(size=4, negatives=3, dtype=torch.float32):
    relation = torch.eye(1 + negatives).expand(size, -1, -1).clone()
    return {
        "z": torch.randn(size, 1 + negatives, generator=GENERATOR).to(dtype),
        "z_in_batch": torch.randn(size, size, generator=GENERATOR).to(dtype),
        "s": torch.rand(size, 1 + negatives, generator=GENERATOR),
        "s_in_batch": torch.rand(size, size, generator=GENERATOR),
        "features": torch.randn(size, 1 + negatives, 6, generator=GENERATOR).to(dtype),
        "teacher_relation": relation,
    }


def test_a_negative_the_teacher_holds_for_relevant_gets_no_gradient():
    z = torch.randn(2, 4, generator=GENERATOR, requires_grad=True)
    s = torch.tensor([[0.9, 1.0, 0.2, 0.3], [0.8, 0.1, 1.0, 1.0]])
    losses.contrastive_imitation(z, s).backward()
    assert (z.grad[:, 1:][s[:, 1:] == 1] == 0).all()
    assert (z.grad[:, 1:][s[:, 1:] < 1] > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_constant_logits_give_finite_gradients(value):
    inputs = batch()
    inputs["z"], inputs["z_in_batch"] = torch.full((4, 4), value), torch.full((4, 4), value)
    total, gradients = total_and_gradients(**inputs)
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() and g.abs().max() < 10 for g in gradients.values())


def test_constant_logits_count_as_uncorrelated():
    z = torch.full((2, 4), 0.1, requires_grad=True)
    loss = losses.rank_imitation_correlation(z, torch.rand(2, 4, generator=GENERATOR))
    loss.backward()
    assert loss.item() == 1
    assert (z.grad == 0).all()


def test_zero_features_give_finite_gradients():
    inputs = batch()
    inputs["features"] = torch.zeros_like(inputs["features"])
    inputs["features"][0, 1] = 1
    total, gradients = total_and_gradients(**inputs)
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() and g.abs().max() < 10 for g in gradients.values())


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_extreme_logits_and_saturated_teachers_stay_finite(size, negatives, logit, score, dtype):
    inputs = batch(size, negatives, dtype)
    inputs["z"][0, 0] = inputs["z_in_batch"][-1, 0] = logit
    inputs["s"][:] = score
    total, gradients = total_and_gradients(**inputs)
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_autocast_changes_nothing():
    inputs = batch()
    expected, _ = losses.d2llm_loss(**inputs, weights=LossWeights(gamma=1, eta=1))
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = losses.d2llm_loss(**inputs, weights=LossWeights(gamma=1, eta=1))
    assert torch.equal(actual, expected)


def test_a_batch_of_one_has_no_pairwise_and_no_in_batch_loss():
    inputs = batch(size=1)
    _, parts = losses.d2llm_loss(**inputs)
    assert parts["rank_pairwise"] == 0
    assert parts["in_batch"] == 0
    assert parts["contrastive"] > 0


def test_without_negatives_only_the_in_batch_loss_counts():
    inputs = batch(negatives=0)
    total, parts = losses.d2llm_loss(**inputs)
    assert {name for name, part in parts.items() if part.abs() > 1e-6} == {"in_batch"}
    torch.testing.assert_close(total, losses.in_batch_loss(inputs["z_in_batch"]))


MASK = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def test_duplicates_are_left_out_of_the_batch():
    scores = torch.randn(4, 4, generator=GENERATOR, requires_grad=True)
    losses.in_batch_loss(scores, MASK).backward()
    assert (scores.grad[MASK] == 0).all()
    assert (scores.grad[~MASK] != 0).all()


@pytest.mark.parametrize(("margin", "expected"), [(0.0, [[0, 1], [0, 0]]), (0.3, [[0, 0], [0, 0]])])
def test_what_scores_above_the_positive_by_the_margin_looks_like_one(margin, expected):
    scores = torch.tensor([[0.5, 0.75], [0.25, 0.5]])
    assert losses.false_negative_mask(scores, margin).tolist() == expected
    unknown = torch.tensor([[float("nan"), 0.75], [float("nan"), 0.5]])
    assert not losses.false_negative_mask(unknown, margin).any()


def test_duplicates_are_left_out_of_the_pairwise_term():
    inputs = batch()
    z_in_batch = inputs["z_in_batch"].requires_grad_()
    s = torch.ones_like(inputs["s"])
    losses.rank_imitation_pairwise(inputs["z"], z_in_batch, s, duplicates=MASK).backward()
    assert (z_in_batch.grad[MASK] == 0).all()
    assert (z_in_batch.grad.diagonal() == 0).all()
    assert (z_in_batch.grad[~MASK & ~torch.eye(4, dtype=torch.bool)] > 0).all()


def test_pairs_the_teacher_has_not_judged_count_as_zero():
    inputs = batch()
    arguments = (inputs["z"], inputs["z_in_batch"], inputs["s"])
    unknown = torch.full((4, 4), float("nan"))
    zero = losses.rank_imitation_pairwise(*arguments, torch.zeros(4, 4))
    assert losses.rank_imitation_pairwise(*arguments, unknown) == zero
    assert losses.rank_imitation_pairwise(*arguments, None) == zero


@pytest.mark.parametrize("filler", [0.0, float("nan"), float("inf")])
def test_masked_passages_are_as_if_absent(filler):
    inputs = batch(negatives=4)
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[:, 3:] = False
    short = {
        name: value[:, :3, :3] if name == "teacher_relation" else value[:, :3] if "in_batch" not in name else value
        for name, value in inputs.items()
    }
    for name in ("z", "s", "features"):
        inputs[name][:, 3:] = filler
    inputs["teacher_relation"][:, 3:] = filler
    expected, expected_gradients = total_and_gradients(**short)
    actual, gradients = total_and_gradients(**inputs, valid=valid)
    torch.testing.assert_close(actual, expected)
    for name in ("z", "features"):
        torch.testing.assert_close(gradients[name][:, :3], expected_gradients[name])
        assert (gradients[name][:, 3:] == 0).all()


def test_rows_without_teacher_are_as_if_absent():
    inputs = batch()
    inputs["s"][1] = float("nan")
    inputs["teacher_relation"][1] = float("nan")
    kept = [0, 2, 3]
    _, parts = losses.d2llm_loss(**inputs)
    _, expected = losses.d2llm_loss(**{n: v[kept][:, kept] if "in_batch" in n else v[kept] for n, v in inputs.items()})
    for name in ("contrastive", "rank_correlation", "feature"):
        torch.testing.assert_close(parts[name], expected[name])
    assert all(torch.isfinite(part) for part in parts.values())


def test_a_batch_without_any_teacher_score_trains_on_labels():
    inputs = batch()
    inputs["s"][:] = float("nan")
    inputs["teacher_relation"][:] = float("nan")
    total, gradients = total_and_gradients(**inputs)
    expected = losses.in_batch_loss(inputs["z_in_batch"]) + losses.label_contrastive(inputs["z"])
    torch.testing.assert_close(total, expected)
    assert (gradients["z"][:, 0] < 0).all() and (gradients["z"][:, 1:] > 0).all()
    assert (gradients["features"] == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_labels_leave_to_the_teacher_what_it_has_judged(share):
    z = torch.randn(3, 4, generator=GENERATOR, requires_grad=True)
    # The second row lacks a passage and a judgement, the third the judgement of its positive.
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    judged = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    losses.label_contrastive(z, valid, judged, share).backward()
    pushed = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    assert torch.equal(z.grad[:, 1:] > 0, pushed if share == 0 else valid[:, 1:])
    assert (z.grad[~valid] == 0).all()


def test_a_share_of_labels_takes_from_contrastive_imitation_what_it_gives():
    inputs = batch()
    parts = [losses.d2llm_loss(**inputs, weights=LossWeights(label_share=share))[1] for share in (0.0, 0.25, 1.0)]
    assert parts[0]["labels"] == 0 and "contrastive" not in parts[2]
    torch.testing.assert_close(parts[1]["labels"], 0.25 * parts[2]["labels"])
    torch.testing.assert_close(parts[1]["contrastive"], 0.75 * parts[0]["contrastive"])


def test_a_masked_negative_cannot_spoil_the_loss_on_labels():
    z = torch.randn(2, 3, generator=GENERATOR)
    z[:, 2] = float("inf")
    valid = torch.tensor([[1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    torch.testing.assert_close(losses.label_contrastive(z, valid), losses.label_contrastive(z[:, :2]))
    assert losses.label_contrastive(z[:, :1]) == 0


def test_perfect_imitation_costs_nothing():
    features = torch.randn(3, 4, 6, generator=GENERATOR)
    assert losses.feature_imitation(features, losses.cosine_relation(features)) < 1e-9
    s = torch.rand(3, 4, generator=GENERATOR)
    assert losses.rank_imitation_correlation(10 * s - 3, s) < 1e-5
    assert losses.rank_imitation_correlation(-s, s) == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scores", lambda: losses.in_batch_loss(torch.zeros(2, 3))),
        ("duplicates", lambda: losses.in_batch_loss(torch.zeros(2, 2), torch.zeros(3, 3))),
        ("z", lambda: losses.contrastive_imitation(torch.zeros(3), torch.zeros(3))),
        ("s", lambda: losses.contrastive_imitation(torch.zeros(2, 3), torch.zeros(2, 2))),
        ("valid", lambda: losses.rank_imitation_correlation(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 2))),
        ("z_in_batch", lambda: losses.rank_imitation_pairwise(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2, 3))),
        ("features", lambda: losses.feature_imitation(torch.zeros(2, 3), torch.zeros(2, 3, 3))),
        ("teacher_relation", lambda: losses.feature_imitation(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))),
        ("scores", lambda: losses.false_negative_mask(torch.zeros(2, 3))),
        ("gamma", lambda: LossWeights(gamma=-1)),
        ("temperature", lambda: LossWeights(temperature=0)),
        ("label_share", lambda: LossWeights(label_share=1.5)),
        ("judged", lambda: losses.label_contrastive(torch.zeros(2, 3), judged=torch.zeros(2, 2))),
        ("eta", lambda: LossWeights(eta=float("nan"))),
        ("in_batch_form", lambda: LossWeights(in_batch_form="sum")),
        ("form", lambda: losses.in_batch_loss(torch.zeros(2, 2), form="sum")),
    ],
)
def test_errors_name_the_argument(name, arguments):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        arguments()
