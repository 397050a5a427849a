"""The CUDA operators called by themselves: what does not fit is refused by name before a kernel runs."""

import pytest
import torch

from d2llm_kernels import backends
from d2llm_kernels.backends.cuda import library

pytestmark = pytest.mark.skipif(backends.missing("cuda") is not None, reason="needs the CUDA kernels")

Q, P, F, B, L, H, D = 3, 4, 16, 2, 5, 3, 8


def cases(device):
    """Arguments that each operator takes, by name and in order."""

    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(*shape, dtype=dtype, device=device)

    weights = {"weight": zeros(F, F), "bias": zeros(F), "out_weight": zeros(1, F), "out_bias": zeros(1)}
    grid, given = {"a": zeros(Q, F), "b": zeros(P, F)}, {"a": zeros(P, F), "b": zeros(P, F)}
    tokens = {"x": zeros(B, L, D), "u": zeros(H, D), "mask": zeros(B, L, dtype=torch.uint8), "offsets": None}
    offsets = torch.tensor([0, 4, 10], device=device)
    packed = tokens | {"x": zeros(10, D), "mask": None, "offsets": offsets}
    gradients = {"dpooled": zeros(B, H, D), "dlse": zeros(B, H)}
    return [
        ("scores", {**grid, **weights, "z": zeros(Q, P), "features": None, "given": False, "first_passage": 0}),
        ("scores", {**given, **weights, "z": zeros(P), "features": zeros(P, F), "given": True, "first_passage": 0}),
        ("slopes", {**grid, **weights, "dz": zeros(Q, P), "dfeatures": None, "dpre": zeros(Q * P, F), "given": False}),
        ("slopes", {**given, **weights, "dz": zeros(P), "dfeatures": zeros(P, F), "dpre": zeros(P, F), "given": True}),
        ("inputs", {**grid, "transposed": zeros(F, F), "dpre": zeros(Q * P, F), "programs": 4, "given": False}),
        ("weights", {**grid, "dpre": zeros(Q * P, F), "dweight": zeros(2, F, F), "given": False}),
        ("pool", tokens),
        ("pool", packed),
        ("pool_gradients", {**gradients, **tokens}),
        ("pool_gradients", {**gradients, **packed}),
    ]


def call(name, arguments):
    return getattr(library.operators(), name)(*arguments.values())


@pytest.mark.parametrize("number", range(len(cases("cpu"))))
def test_what_does_not_fit_is_refused_by_name(number, device):
    name, arguments = cases(device)[number]
    call(name, arguments)
    for key, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        refused = [value.double(), value.new_zeros(2, *value.shape)]
        if not (name == "pool" and key == "offsets"):  # There, fewer of them are fewer sequences.
            refused.append(value[..., :-1].contiguous())
        if key not in ("mask", "offsets", "features", "dfeatures", "dlse"):
            refused.append(None)
        for other in refused:
            with pytest.raises(RuntimeError, match=": expected"):
                call(name, arguments | {key: other})


@pytest.mark.parametrize("first", (-1, 2**31 - 4, 2**40))
def test_numbers_of_passages_have_32_bits(first, device):
    name, arguments = cases(device)[0]
    with pytest.raises(RuntimeError, match="first_passage: expected"):
        call(name, arguments | {"first_passage": first})


@pytest.mark.parametrize("shape", [(1, Q * P), (Q * P,), (P, Q)], ids=str)
def test_a_grid_of_scores_has_its_shape(shape, device):
    """As many elements in another shape would be written past the end, by the stride of the rows."""
    for name, key in (("scores", "z"), ("slopes", "dz")):
        arguments = next(given for each, given in cases(device) if each == name)
        with pytest.raises(RuntimeError, match=f"{key}: expected a number for each pair, 12"):
            call(name, arguments | {key: torch.zeros(shape, device=device)})
