"""Tensors on another GPU than the current one: everything runs there, whatever ran on the other one before."""

import pytest
import torch

import d2llm_kernels as dk
from tests.contract import run

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.real,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_results_do_not_depend_on_the_current_device(make_tokens, make_pairs, dtype):
    (x, u, mask), pairs = make_tokens(3, 70, 512, 20, dtype), make_pairs(9, 150, 256, dtype)

    def step(x, u, *pairs):
        mine = mask.to(x.device)
        return (*dk.functional.attn_pool(x, u, mask=mine), dk.functional.iem_scores(*pairs))

    first, *others = (run(step, [t.to(f"cuda:{index}") for t in (x, u, *pairs)]) for index in (0, 1, 1, 0))
    for other in others:
        for one, two in zip((*first[0], *first[1]), (*other[0], *other[1]), strict=True):
            assert torch.equal(one.cpu(), two.cpu())


def test_tensors_of_two_devices_are_refused(make_pairs, backend):
    if backend != "cuda":
        pytest.skip("checks of the CUDA kernels")
    a, b, *weights = make_pairs(3, 20, 64, torch.float32)
    with pytest.raises(RuntimeError, match="b: expected device cuda:0, got cuda:1"):
        dk.functional.iem_scores(a, b.to("cuda:1"), *weights)
