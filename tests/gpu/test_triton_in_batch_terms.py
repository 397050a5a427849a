"""The Triton kernels of the losses over all pairs: on a GPU, or interpreted in a process with TRITON_INTERPRET=1."""

import pytest
import torch

import d2llm_kernels as dk
from tests.contract import assert_parity

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter alone multiplies in float64, and it is slow: its sizes are just above its tiles.
DTYPES = (torch.float32, torch.bfloat16) if GPU else (torch.float64, torch.float32, torch.bfloat16)
BATCHES = [(1, 3), (5, 0), (19, 1), (17, 3), (33, 2)] + ([(257, 8), (1000, 33)] if GPU else [])


def inputs(batch: int, hard: int, seed: int = 0, scale: float = 1.0):
    """The student's two tensors, and the teacher's two with NaN here and there, with a mask of duplicates."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    z = (scale * torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((batch, batch), (batch, hard)))
    s_hard, s_in_batch = uniform(batch, hard), uniform(batch, batch)
    s_hard[uniform(batch, hard) < 0.2] = float("nan")
    s_in_batch[uniform(batch, batch) < 0.2] = float("nan")
    return tuple(z), (s_hard, s_in_batch, uniform(batch, batch) < 0.2)


def terms(teacher, temperature=1.0, backend="triton"):
    """A function of the student's two tensors, wherever they are; its results are on the CPU."""

    def function(z_in_batch, z_hard):
        s_hard, s_in_batch, duplicates = teacher
        dtype, device = z_in_batch.dtype, DEVICE if backend == "triton" else "cpu"
        duplicates = None if duplicates is None else duplicates.to(device)
        s_in_batch = None if s_in_batch is None else s_in_batch.to(device, dtype)
        scores = (z_in_batch.to(device), z_hard.to(device), s_hard.to(device, dtype))
        results = dk.functional.in_batch_terms(*scores, s_in_batch, duplicates, temperature, backend=backend)
        return tuple(t.cpu() for t in results)

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch,hard", BATCHES)
def test_parity(batch, hard, dtype):
    student, teacher = inputs(batch, hard)
    assert_parity(terms(teacher, 0.3), terms(teacher, 0.3, "reference"), student, dtype)


@pytest.mark.parametrize("without", (("s_in_batch",), ("duplicates",), ("s_in_batch", "duplicates")))
def test_parity_without_teacher_or_mask(without):
    student, (s_hard, s_in_batch, duplicates) = inputs(18, 2)
    rest = {"s_in_batch": s_in_batch, "duplicates": duplicates} | dict.fromkeys(without)
    teacher = (s_hard, rest["s_in_batch"], rest["duplicates"])
    assert_parity(terms(teacher), terms(teacher, backend="reference"), student, torch.float32)


def test_large_logits():
    student, teacher = inputs(18, 2, scale=1e4)
    assert_parity(terms(teacher), terms(teacher, backend="reference"), student, torch.float32)


def test_the_tail_of_the_logistic_function_keeps_its_digits():
    z_in_batch, z_hard = torch.zeros(17, 17, dtype=torch.float64), torch.full((17, 2), 18.0, dtype=torch.float64)
    teacher = (torch.ones(17, 2, dtype=torch.float64), None, None)
    expected = 2 * 16 * torch.tensor(-18.0, dtype=torch.float64).exp().log1p()
    pairwise = terms(teacher)(z_in_batch.float(), z_hard.float())[1]
    torch.testing.assert_close(pairwise, expected.float().expand(17), rtol=1e-5, atol=0)


@pytest.mark.skipif(GPU, reason="float64 is for the interpreter")
def test_gradcheck():
    student, teacher = inputs(4, 3)
    assert torch.autograd.gradcheck(terms(teacher, 0.7), tuple(t.requires_grad_() for t in student))


@pytest.mark.parametrize("index", (0, 1))
def test_either_term_alone_has_its_own_gradient(index):
    student, teacher = inputs(7, 2)
    one, both = ([t.float().requires_grad_() for t in student] for _ in range(2))
    terms(teacher)(*one)[index].sum().backward()
    (terms(teacher, backend="reference")(*both)[index].sum() + 0 * both[1].sum()).backward()
    for got, expected in zip(one, both, strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-6)


def test_what_takes_no_part_is_not_read():
    (z_in_batch, z_hard), (s_hard, s_in_batch, _) = inputs(18, 2)
    every = torch.ones(18, 18, dtype=torch.int64)
    z_in_batch.fill_(float("nan")).fill_diagonal_(2.0)
    z_hard.masked_fill_(s_hard.isnan(), float("nan"))
    leaves = [t.float().requires_grad_() for t in (z_in_batch, z_hard)]
    cross_entropy, pairwise = terms((s_hard, s_in_batch, every))(*leaves)
    assert torch.equal(cross_entropy, torch.zeros(18)) and torch.equal(pairwise, torch.zeros(18))
    (cross_entropy + pairwise).sum().backward()
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in leaves)


def test_a_row_depends_on_nothing_but_itself():
    (z_in_batch, z_hard), (s_hard, s_in_batch, duplicates) = inputs(18, 2)
    student = (z_in_batch.float(), z_hard.float())
    expected = terms((s_hard, s_in_batch, duplicates))(*student)
    changed = [t.clone() for t in (*student, s_hard, s_in_batch)]
    for tensor in changed:
        tensor[1:] = float("nan")
    got = terms((changed[2], changed[3], duplicates))(changed[0], changed[1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(got, expected, strict=True))


def test_row_strides_are_accepted_and_repeats_are_bit_equal():
    student, teacher = inputs(18, 3)
    plain = [t.float().requires_grad_() for t in student]
    wide = [torch.cat([t.detach(), torch.full_like(t, float("nan"))], 1)[:, : t.shape[1]] for t in plain]
    columns = [torch.stack([t.detach()] * 2, -1)[..., 0] for t in plain]
    gradients = []
    for leaves in (plain, wide, columns):
        leaves = [t.requires_grad_() for t in leaves]
        gradients.append(torch.autograd.grad(sum(t.sum() for t in terms(teacher)(*leaves)), leaves))
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
