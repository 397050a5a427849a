"""The losses over all pairs of a batch: parity, gradients, what takes part, memory, the operator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import d2llm_kernels as dk
from d2llm_kernels.backends.folded import in_batch
from d2llm_kernels.measure.in_batch import ROWS
from tests import adversarial
from tests.contract import assert_parity
from tests.kernels.cases import (
    BACKENDS,
    CASES,
    PARITY,
    assert_same_on_any_threads,
    largest_allocation,
    saved_for_backward,
    with_gradients,
)

# Roundings of a float32 logarithm and of what leads to it: two exponentials, a quotient, a product.
ROUNDINGS = 4


def inputs(batch: int, hard: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0):
    """The student's two tensors, and the teacher's two with NaN here and there, with a mask of duplicates."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    z = (scale * torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((batch, batch), (batch, hard)))
    s_hard, s_in_batch = uniform(batch, hard), uniform(batch, batch)
    s_hard[uniform(batch, hard) < 0.2] = float("nan")
    s_in_batch[uniform(batch, batch) < 0.2] = float("nan")
    return tuple(t.to(dtype) for t in z), (s_hard.to(dtype), s_in_batch.to(dtype), uniform(batch, batch) < 0.2)


def terms(teacher, temperature=1.0, backend="folded"):
    def function(z_in_batch, z_hard):
        s_hard, s_in_batch, duplicates = teacher
        dtype = z_in_batch.dtype
        s_in_batch = None if s_in_batch is None else s_in_batch.to(dtype)
        rest = (s_in_batch, duplicates, temperature)
        return dk.functional.in_batch_terms(z_in_batch, z_hard, s_hard.to(dtype), *rest, backend=backend)

    return function


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(in_batch, "chunk_elements", lambda device: 40)


def exact_dtype(backend: str) -> torch.dtype:
    """The widest dtype that a backend takes."""
    return torch.float32 if backend == "cpu" else torch.float64


@pytest.mark.parametrize("backend,dtype,threads", PARITY, indirect=["threads"])
@pytest.mark.parametrize("temperature", (1.0, 0.07))
@pytest.mark.parametrize("batch,hard", [(1, 3), (2, 0), (9, 1), (33, 5), (65, 8), (130, 64)])
def test_parity(batch, hard, temperature, backend, dtype, threads, small_chunks):
    student, teacher = inputs(batch, hard)
    assert_parity(terms(teacher, temperature, backend), terms(teacher, temperature, "reference"), student, dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("without", (("s_in_batch",), ("duplicates",), ("s_in_batch", "duplicates")))
@pytest.mark.parametrize("batch", (12, 300))
def test_parity_without_teacher_or_mask(batch, without, backend, dtype):
    student, (s_hard, s_in_batch, duplicates) = inputs(batch, 3)
    rest = {"s_in_batch": s_in_batch, "duplicates": duplicates} | dict.fromkeys(without)
    teacher = (s_hard, rest["s_in_batch"], rest["duplicates"])
    assert_parity(terms(teacher, backend=backend), terms(teacher, backend="reference"), student, dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("scale", (0.01, 8.0, 30.0, 1e4))
def test_parity_where_few_pairs_were_judged(scale, backend, dtype):
    """Whole blocks of columns then have the same gap; logits of any size."""
    student, (s_hard, s_in_batch, duplicates) = inputs(390, 7, scale=scale)
    s_in_batch[:, :200], s_in_batch[:, 210:] = float("nan"), 0
    teacher = (s_hard, s_in_batch, duplicates)
    assert_parity(terms(teacher, backend=backend), terms(teacher, backend="reference"), student, dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
def test_parity_where_every_passage_is_ranked_right(backend, dtype):
    """Small losses keep their digits: log(1 + t) of a small t."""
    (z_in_batch, z_hard), teacher = inputs(200, 5)
    z_in_batch.diagonal().add_(25)
    student = (z_in_batch, z_hard + 18)
    assert_parity(terms(teacher, backend=backend), terms(teacher, backend="reference"), student, dtype)
    without = (teacher[0], None, teacher[2])
    assert_parity(terms(without, backend=backend), terms(without, backend="reference"), student, dtype)


@pytest.mark.parametrize("backend,dtype", CASES)
def test_large_logits_are_exact_and_their_gradients_finite(backend, dtype):
    student, teacher = inputs(17, 3, scale=1e4)
    assert_parity(terms(teacher, backend=backend), terms(teacher, backend="reference"), student, dtype)
    leaves = [t.to(dtype).requires_grad_() for t in student]
    outputs = terms(teacher, backend=backend)(*leaves)
    sum(t.sum() for t in outputs).backward()
    assert all(t.isfinite().all() for t in (*outputs, *(leaf.grad for leaf in leaves)))


@pytest.mark.parametrize("backend,dtype", CASES)
@pytest.mark.parametrize("judged", adversarial.JUDGED)
@pytest.mark.parametrize("logits", adversarial.LOGITS)
def test_parity_row_by_row_where_ties_and_the_last_bit_decide(logits, judged, backend, dtype):
    student, teacher = adversarial.in_batch(100, 5, logits, judged)
    kernel, literal = (terms(teacher, backend=name) for name in (backend, "reference"))
    assert_parity(kernel, literal, student, dtype, rows=ROWS)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(2, 40),
    hard=st.integers(1, 9),
    logits=st.sampled_from(adversarial.LOGITS),
    judged=st.sampled_from(adversarial.JUDGED),
    seed=st.integers(0, 999),
    masked=st.booleans(),
)
def test_any_ties_keep_the_contract_row_by_row(backend, batch, hard, logits, judged, seed, masked):
    student, (s_hard, s_in_batch, duplicates) = adversarial.in_batch(batch, hard, logits, judged, seed)
    teacher = (s_hard, s_in_batch, duplicates if masked else None)
    kernel, literal = (terms(teacher, backend=name) for name in (backend, "reference"))
    assert_parity(kernel, literal, student, torch.float32, rows=ROWS)


def pairs_of(easy: torch.Tensor, hard: torch.Tensor, backend: str) -> torch.Tensor:
    """The pairwise term of rows with one hard negative (n,) each and some columns (n, c), -inf where there is none."""
    results, columns = [], easy.shape[1]
    for values, against in zip(easy.split(256), hard.split(256), strict=True):
        rows = len(values)
        z = torch.full((rows + columns, rows + columns), -math.inf)
        z[:rows, rows:] = values
        duplicates = z == -math.inf
        z_hard, s_hard = torch.zeros(len(z), 1), torch.full((len(z), 1), math.nan)
        z_hard[:rows, 0], s_hard[:rows] = against, 1
        got = dk.functional.in_batch_terms(
            z.masked_fill(duplicates, 0), z_hard, s_hard, None, duplicates, backend=backend
        )
        results.append(got[1][:rows])
    return torch.cat(results)


def assert_logarithms(easy: torch.Tensor, hard: torch.Tensor, backend: str) -> None:
    """Hold ``pairs_of`` against log(1 + exp(z_e - z_h)) in float64, each row to a few roundings."""
    expected = torch.nn.functional.softplus(easy.double() - hard.double()[:, None], threshold=1e3).sum(1)
    error = ((pairs_of(easy, hard, backend) - expected) / expected).abs()
    assert error.max() <= ROUNDINGS * torch.finfo(torch.float32).eps, f"{error.max():.3e} in row {error.argmax()}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_of_any_logits_has_its_logarithm(backend):
    """Equal logits, all of bfloat16; exp of a difference at every float32 from 0.999 to 1; differences of any size."""
    equal = torch.arange(-(1 << 15), 1 << 15).short().view(torch.bfloat16).float()
    equal = equal[equal.abs() <= 40]
    near = torch.arange(1 << 14) * 2.0**-24
    apart = torch.cat([near, torch.linspace(0, 30, 1000), torch.arange(-60, 6).exp2()])
    easy = torch.cat([equal, apart, -apart])
    assert_logarithms(easy[:, None], torch.cat([equal, torch.zeros(2 * len(apart))]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_of_factors_has_its_logarithm(backend):
    """Up to 64 factors 1 + t in one lane of the C++ kernels: 2^n, just beside it and between, from n = 0."""
    last = torch.cat([torch.arange(16) * 2.0**-24, torch.linspace(0, 30, 40), torch.tensor([-1e-7, -1e-3, -1.0])])
    easy = torch.full((17, len(last), 64, 16), -math.inf)
    for row, n in enumerate((*range(8), *range(15, 64, 6))):
        easy[row, :, :n, 0] = 0
        easy[row, :, n, 0] = -last
    assert_logarithms(easy.flatten(2).flatten(0, 1), torch.zeros(17 * len(last)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logit", (0.0, -0.40625, 2.0**-24, 1e-3, -36.0))
def test_columns_that_are_all_alike_have_the_logarithm_of_one(logit, backend):
    """As many as are multiplied before a logarithm is taken, and more."""
    columns = torch.cat([torch.arange(1, 70), torch.arange(70, 1100, 29)])
    easy = torch.where(torch.arange(1100) < columns[:, None], logit, -math.inf)
    for hard in (logit, logit + 2.0**-20, logit - 3):
        assert_logarithms(easy, torch.full((len(easy),), hard), backend)


def test_gradcheck(small_chunks):
    student, teacher = inputs(6, 3)
    assert torch.autograd.gradcheck(terms(teacher, 0.7), tuple(t.requires_grad_() for t in student))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", (0, 1))
def test_either_term_alone_has_its_own_gradient(index, backend):
    dtype = exact_dtype(backend)
    student, teacher = inputs(7, 2, dtype=dtype)
    one, both = ([t.clone().requires_grad_() for t in student] for _ in range(2))
    terms(teacher, backend=backend)(*one)[index].sum().backward()
    (terms(teacher, backend="reference")(*both)[index].sum() + 0 * both[1].sum()).backward()
    tolerances = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for got, expected in zip(one, both, strict=True):
        torch.testing.assert_close(got.grad, expected.grad, **tolerances)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_one_costs_nothing(backend):
    student, teacher = inputs(1, 4, dtype=exact_dtype(backend))
    cross_entropy, pairwise = terms(teacher, backend=backend)(*student)
    assert cross_entropy.item() == 0 and pairwise.item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_hard_negatives_the_pairs_are_empty(backend):
    z = torch.randn(5, 5, requires_grad=True)
    cross_entropy, pairwise = dk.functional.in_batch_terms(z, backend=backend)
    expected = torch.nn.functional.cross_entropy(z, torch.arange(5), reduction="none")
    torch.testing.assert_close(cross_entropy, expected)
    assert torch.equal(pairwise, torch.zeros(5))
    pairwise.sum().backward()
    assert torch.equal(z.grad, torch.zeros(5, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates_everywhere_leave_the_diagonal_alone(backend):
    (z_in_batch, z_hard), (s_hard, s_in_batch, _) = inputs(5, 2, dtype=exact_dtype(backend))
    every = torch.ones(5, 5, dtype=torch.uint8)
    z_in_batch.fill_(float("nan")).fill_diagonal_(2.0)
    z_in_batch.requires_grad_()
    cross_entropy, pairwise = terms((s_hard, s_in_batch, every), backend=backend)(z_in_batch, z_hard)
    assert torch.equal(cross_entropy, torch.zeros_like(cross_entropy))
    assert torch.equal(pairwise, torch.zeros_like(pairwise))
    (cross_entropy + pairwise).sum().backward()
    assert torch.equal(z_in_batch.grad, torch.zeros_like(z_in_batch))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_negatives_that_are_not_judged_are_not_read(backend):
    (z_in_batch, z_hard), (s_hard, *rest) = inputs(6, 4, dtype=exact_dtype(backend))
    expected = terms((s_hard, *rest), backend=backend)(z_in_batch, z_hard)
    garbage = z_hard.masked_fill(s_hard.isnan(), float("nan")).requires_grad_()
    got = terms((s_hard, *rest), backend=backend)(z_in_batch, garbage)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    got[1].sum().backward()
    assert (garbage.grad[s_hard.isnan()] == 0).all() and garbage.grad.isfinite().all()


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_half_precision_is_summed_in_float32_and_autocast_changes_nothing(backend):
    (z_in_batch, z_hard), teacher = inputs(6, 2, dtype=torch.bfloat16)
    function = terms(teacher, backend=backend)
    assert all(t.dtype == torch.float32 for t in function(z_in_batch, z_hard))
    student = (z_in_batch.float().requires_grad_(), z_hard.float())
    expected = function(*student)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(function(*student), expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_expanded_gradients_and_bit_equal_repeats(backend):
    student, teacher = inputs(70, 3, dtype=exact_dtype(backend))
    apart = tuple(torch.stack([t, t], -1)[..., 0] for t in teacher)
    strided, plain = ([torch.stack([t, t], -1)[..., 0].requires_grad_() for t in student], [t.clone() for t in student])
    for leaves, judged in ((strided, apart), ([t.requires_grad_() for t in plain], teacher)):
        sum(t.sum() for t in terms(judged, backend=backend)(*leaves)).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(strided, plain, strict=True))


@pytest.mark.cpu
def test_bit_equal_for_any_number_of_threads():
    """Gradients too: a row is the work of one thread, whoever that is."""
    (z_in_batch, z_hard), teacher = inputs(301, 5, dtype=torch.float32)
    leaves = (z_in_batch.requires_grad_(), z_hard.requires_grad_())
    assert_same_on_any_threads(lambda: with_gradients(terms(teacher, backend="cpu"), leaves))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_are_those_of_float32(backend):
    (z_in_batch, z_hard), (s_hard, s_in_batch, duplicates) = inputs(9, 3, dtype=torch.float32)
    leaves = (z_in_batch.bfloat16().requires_grad_(), z_hard.requires_grad_())
    got = dk.functional.in_batch_terms(*leaves, s_hard.half(), s_in_batch, duplicates.long(), backend=backend)
    wide = (leaves[0].float(), z_hard, s_hard.half().float(), s_in_batch, duplicates)
    expected = dk.functional.in_batch_terms(*wide, backend=backend)
    assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
    gradients = torch.autograd.grad(got[0].sum() + got[1].sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_inputs_are_saved_for_backward(backend):
    student, teacher = inputs(64, 4, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in student]
    allowed = {t.untyped_storage().data_ptr() for t in (*leaves, *teacher)}
    kept = saved_for_backward(lambda: terms(teacher, backend=backend)(*leaves))
    assert kept and kept.keys() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_allocation_beyond_the_matrix_and_a_chunk(backend, monkeypatch):
    batch, hard, elements = 256, 8, 1 << 14
    monkeypatch.setattr(in_batch, "chunk_elements", lambda device: elements)
    student, teacher = inputs(batch, hard, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in student]
    largest = largest_allocation(lambda: sum(t.sum() for t in terms(teacher, backend=backend)(*leaves)).backward())
    assert 0 < largest <= max(batch * batch, elements) * 4
    assert largest < batch * hard * batch * 4 / 4, "of the order of B * K * B"


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    (z_in_batch, z_hard), teacher = inputs(5, 3, dtype=torch.float32)
    leaves = (z_in_batch.requires_grad_(), z_hard.requires_grad_())
    torch.library.opcheck(torch.ops.d2llm.in_batch_terms, (*leaves, *teacher, 0.5, backend))
    none = (*leaves, teacher[0], None, None, 1.0, backend)
    torch.library.opcheck(torch.ops.d2llm.in_batch_terms, none)
    plain = (z_in_batch.detach(), z_hard.detach(), *teacher, 0.5, backend)
    for slopes in ((torch.randn(5), torch.randn(5)), (None, torch.randn(5)), (torch.randn(5), None)):
        torch.library.opcheck(torch.ops.d2llm.in_batch_terms_backward, (*slopes, *plain))


def test_compiles_without_graph_breaks_for_any_batch():
    def step(z_in_batch, z_hard, s_hard, s_in_batch, duplicates):
        terms = dk.functional.in_batch_terms(z_in_batch.sin(), z_hard, s_hard, s_in_batch, duplicates, 0.5)
        return terms[0].sum() + terms[1].square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, hard in ((4, 3), (6, 2), (9, 5)):
        (z_in_batch, z_hard), teacher = inputs(batch, hard, dtype=torch.float32)
        z_in_batch.requires_grad_()
        (expected,) = torch.autograd.grad(step(z_in_batch, z_hard, *teacher), z_in_batch)
        (got,) = torch.autograd.grad(compiled(z_in_batch, z_hard, *teacher), z_in_batch)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


SQUARE, GROUP = torch.zeros(3, 3), torch.zeros(3, 2)


@pytest.mark.parametrize(
    "changed,name",
    [
        ({"z_in_batch": torch.zeros(3, 4)}, "z_in_batch"),
        ({"z_in_batch": torch.zeros(0, 0)}, "z_in_batch"),
        ({"z_in_batch": SQUARE.long()}, "z_in_batch"),
        ({"z_hard": torch.zeros(2, 2)}, "z_hard"),
        ({"z_hard": GROUP.long()}, "z_hard"),
        ({"z_hard": None}, "s_hard"),
        ({"s_hard": torch.zeros(3, 3)}, "s_hard"),
        ({"s_in_batch": GROUP}, "s_in_batch"),
        ({"s_in_batch": SQUARE.bool()}, "s_in_batch"),
        ({"duplicates": GROUP.bool()}, "duplicates"),
        ({"duplicates": SQUARE}, "duplicates"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"z_hard": GROUP.to("meta")}, "z_hard"),
    ],
)
def test_bad_arguments_are_named(changed, name):
    arguments = {"z_in_batch": SQUARE, "z_hard": GROUP, "s_hard": GROUP, "s_in_batch": SQUARE} | changed
    with pytest.raises(dk.ArgumentError, match=f"^{name}: expected"):
        dk.functional.in_batch_terms(**arguments)
