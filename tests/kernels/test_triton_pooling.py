"""What the Triton kernels of pooling are launched with, found without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from d2llm_kernels.backends.triton import operations as triton
from tools.cross_compile import recorded


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_a_gradient_that_is_not_wanted_costs_nothing(wanted):
    x, u = (torch.empty(*shape, device="meta") for shape in ((4, 20, 64), (8, 64)))
    launches = []
    with recorded("sm_90", "", launches):
        gradients = triton.attn_pool_backward(x.new_empty(4, 8, 64), None, x, u, None, None, wanted)
    assert [g.shape for g in gradients] == [t.shape if want else (0,) for t, want in zip((x, u), wanted, strict=True)]
    _, softmax, last = (launch.arguments for launch in launches)
    assert [last[name] is not None for name in ("dx", "du")] == list(wanted)
    assert (softmax["a"] is None) == (last["a"] is None) == (not wanted[0])
