"""What is particular to the C++ kernels: threads, instruction sets, dtypes, and libraries built for another torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends
from d2llm_kernels.backends.cpu import library
from tests.kernels.test_attn_pool import inputs as pool_inputs
from tests.kernels.test_iem_scores import inputs as pair_inputs
from tests.kernels.test_in_batch import inputs as in_batch_inputs

needs_library = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))


def outputs(dtype):
    """Forward results on shapes that divide by no block, many short sequences and one long one."""
    x, u, mask = (t.to(dtype) if t.is_floating_point() else t for t in pool_inputs(5, 150, 100, 5))
    long = pool_inputs(1, 700, 130, 3)[0].to(dtype)
    tensors = [t.to(dtype) for t in pair_inputs(3, 131, 70)]
    pool = dk.functional.attn_pool
    return (
        *pool(x, u, mask, backend="cpu"),
        *pool(long, long[0, :3], backend="cpu"),
        dk.functional.iem_scores(*tensors, backend="cpu"),
        *dk.functional.iem_topk(*tensors, 9, backend="cpu"),
    )


@needs_library
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_forward_is_bit_equal_for_any_number_of_threads(dtype):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(outputs(dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("name", library.module().build_info()["available"] if library.missing() is None else ())
def test_every_instruction_set_keeps_the_contract(name):
    tests = [
        "tests/kernels/test_attn_pool.py::test_parity",
        "tests/kernels/test_iem_scores.py::test_scores_parity",
        "tests/kernels/test_in_batch.py",
    ]
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider", "-k", "cpu and (2threads or not threads)"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, env={**os.environ, "D2LLM_KERNELS_ISA": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_library
def test_weights_changed_in_place_count_at_once():
    a, b, *branch = (t.float() for t in pair_inputs(2, 3, 20))
    dk.functional.iem_scores(a, b, *branch, backend="cpu")
    # No version counter sees a change through `.data`.
    for tensor in branch:
        tensor.data.add_(0.5)
    changed = dk.functional.iem_scores(a, b, *branch, backend="cpu")
    assert torch.equal(changed, dk.functional.iem_scores(a, b, *(t.clone() for t in branch), backend="cpu"))


@needs_library
def test_auto_takes_the_kernels_for_what_they_support_only():
    chosen = {dtype: backends.select("attn_pool", "auto", "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert set(chosen.values()) == {"cpu"}
    assert re.search(r"attn_pool +f16 bf16 f32 f64 +f16\* bf16 f32 f64\* +bf16\* f32\*$", dk.explain(), re.MULTILINE)
    for dtype in (torch.float64, torch.float16):
        assert backends.select("attn_pool", "auto", "cpu", dtype) == "folded"
        with pytest.raises(
            dk.BackendError,
            match=r"^backend='cpu' cannot serve attn_pool: the C\+\+ kernels take bfloat",
        ):
            dk.functional.attn_pool(torch.randn(1, 3, 4).to(dtype), torch.randn(2, 4).to(dtype), backend="cpu")
    with pytest.raises(dk.BackendError, match=r"take CPU tensors, got meta tensors"):
        backends.select("attn_pool", "cpu", "meta", torch.float32)


@needs_library
def test_mixed_dtypes_are_promoted_and_gradients_come_in_the_inputs_dtypes():
    x, u = torch.randn(2, 5, 8).bfloat16().requires_grad_(), torch.randn(3, 8, requires_grad=True)
    pooled, lse = dk.functional.attn_pool(x, u, backend="cpu")
    wide = dk.functional.attn_pool(x.detach().float(), u.detach(), backend="cpu")
    assert torch.equal(pooled, wide[0]) and torch.equal(lse, wide[1])
    assert [g.dtype for g in torch.autograd.grad(pooled.sum(), (x, u))] == [torch.bfloat16, torch.float32]
    rows = [t.bfloat16().requires_grad_() for t in pair_inputs(3, 3, 20)[:2]]
    branch = [t.float().requires_grad_() for t in pair_inputs(3, 3, 20)[2:]]
    for a, b, *rest in ((*rows, *branch), (*rows, branch[0].detach().bfloat16().requires_grad_(), *branch[1:])):
        z, features = dk.functional.iem_pairs(a, b, *rest, return_features=True, backend="cpu")
        expected = dk.functional.iem_pairs(a.float(), b.float(), rest[0].float(), *rest[1:], backend="cpu")
        assert torch.equal(z, expected) and features.dtype == torch.promote_types(a.dtype, rest[0].dtype)
        gradients = torch.autograd.grad(z.sum() + features.sum(), (a, b, *rest))
        assert [g.dtype for g in gradients] == [t.dtype for t in (a, b, *rest)]


@needs_library
def test_losses_are_bit_equal_for_any_number_of_threads():
    """Their gradients too: a row is the work of one thread, whoever that is."""
    (z_in_batch, z_hard), teacher = in_batch_inputs(301, 5, dtype=torch.float32)
    leaves = (z_in_batch.requires_grad_(), z_hard.requires_grad_())
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 4):
            torch.set_num_threads(threads)
            terms = dk.functional.in_batch_terms(*leaves, *teacher, backend="cpu")
            results.append((*terms, *torch.autograd.grad(terms[0].sum() + terms[1].sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_library
def test_losses_of_mixed_dtypes_are_those_of_float32():
    (z_in_batch, z_hard), (s_hard, s_in_batch, duplicates) = in_batch_inputs(9, 3, dtype=torch.float32)
    leaves = (z_in_batch.bfloat16().requires_grad_(), z_hard.requires_grad_())
    got = dk.functional.in_batch_terms(*leaves, s_hard.half(), s_in_batch, duplicates.long(), backend="cpu")
    wide = (leaves[0].float(), z_hard, s_hard.half().float(), s_in_batch, duplicates)
    expected = dk.functional.in_batch_terms(*wide, backend="cpu")
    assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
    gradients = torch.autograd.grad(got[0].sum() + got[1].sum(), leaves)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]


def test_a_library_for_another_torch_is_named_and_passed_by(tmp_path: Path, monkeypatch):
    other = tmp_path / "_cpu.so"
    other.write_bytes(b"\x7fELF d2llm_kernels built for torch 1.0.0\n\0")
    monkeypatch.setenv(library.LIBRARY, str(other))
    library.missing.cache_clear()
    try:
        assert f"was built for torch 1.0.0, found {torch.__version__}" in str(backends.missing("cpu"))
        assert backends.select("attn_pool", "auto", "cpu", torch.float32) == "folded"
        assert "built for torch 1.0.0" in dk.explain()
    finally:
        monkeypatch.undo()
        library.missing.cache_clear()
