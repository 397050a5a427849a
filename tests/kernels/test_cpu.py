"""What is particular to the C++ kernels: threads, instruction sets, dtypes, and libraries built for another torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d2llm_kernels as dk
from d2llm_kernels import backends, cpu, reference
from tests.contract import assert_parity
from tests.kernels.test_attn_pool import inputs as pool_inputs
from tests.kernels.test_iem_scores import inputs as pair_inputs

needs_library = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


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
            tensors = pair_inputs(3, 63, 50)
            kernel = lambda *t: (dk.functional.iem_scores(*t, backend="auto"),)  # noqa: E731
            assert_parity(kernel, lambda *t: (reference.iem_scores(*t),), tensors, dtype)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_library
@pytest.mark.parametrize("name", cpu.module().build_info()["available"] if cpu.missing() is None else ())
def test_every_instruction_set_keeps_the_contract(name):
    tests = ["tests/kernels/test_attn_pool.py::test_parity", "tests/kernels/test_iem_scores.py::test_scores_parity"]
    # The RMS of one pair is a single draw of rounding errors, for which the contract's factor is not meant.
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cpu and not 1-1-64", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env={**os.environ, "D2LLM_KERNELS_ISA": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@needs_library
def test_auto_takes_the_kernels_for_what_they_support_only():
    x, u = torch.randn(1, 3, 4), torch.randn(2, 4)
    assert backends.select_for("auto", x, u) == "cpu"
    assert backends.select_for("auto", x.double(), u.double()) == "folded"
    assert backends.select_for("auto", x.bfloat16(), u) == "folded"
    for tensors in ((x.double(), u.double()), (x.half(), u.half()), (x.bfloat16(), u)):
        with pytest.raises(dk.BackendError, match=r"^backend='cpu': expected CPU tensors of one dtype"):
            dk.functional.attn_pool(*tensors, backend="cpu")


def test_a_library_for_another_torch_is_named_and_passed_by(tmp_path: Path, monkeypatch):
    library = tmp_path / "_cpu.so"
    library.write_bytes(b"\x7fELF d2llm_kernels built for torch 1.0.0\n\0")
    monkeypatch.setenv(cpu.LIBRARY, str(library))
    cpu.missing.cache_clear()
    try:
        assert f"was built for torch 1.0.0, found {torch.__version__}" in str(backends.missing("cpu"))
        assert backends.select_for("auto", torch.zeros(2, 3)) == "folded"
    finally:
        monkeypatch.undo()
        cpu.missing.cache_clear()
