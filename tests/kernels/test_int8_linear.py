"""Linear layers in whole numbers: exact products, a row's result by itself, the same on every instruction set."""

import pytest
import torch
from torch import nn

from d2llm_kernels.errors import ArgumentError
from d2llm_kernels.rough.linear import Int8Linear, replace_linear
from d2llm_kernels.rough.rows import quantize
from tests.kernels.cases import assert_same_on_any_threads

BACKENDS = ("folded", pytest.param("cpu", marks=pytest.mark.cpu))


def layer(outputs: int, depth: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(depth, outputs, bias=bias)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("rows", [1, 5, 97, 200])
@pytest.mark.parametrize(("outputs", "depth"), [(1, 1), (7, 3), (33, 16), (50, 130), (384, 1537)])
def test_parity(rows: int, outputs: int, depth: int, backend: str) -> None:
    for bias in (True, False):
        linear = layer(outputs, depth, bias)
        x = torch.randn(rows, depth) * torch.logspace(-3, 3, rows)[:, None]
        expected = Int8Linear(linear, "folded")(x)
        assert torch.equal(Int8Linear(linear, backend)(x), expected)
        # One step and its half: of the rows, of the weights.
        bound = (x.abs().amax(1, keepdim=True) / 127) * (linear.weight.abs().sum(1)) / 2
        bound = bound + linear.weight.abs().amax(1) / 127 * x.abs().sum(1, keepdim=True) / 2
        assert ((expected - linear(x)).abs() <= 1.01 * bound + 1e-5).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_its_company(backend: str) -> None:
    linear, x = layer(40, 65), torch.randn(3, 11, 65)
    own = Int8Linear(linear, backend)
    together = own(x)
    assert together.shape == (3, 11, 40)
    assert torch.equal(together, torch.stack([torch.cat([own(row[None]) for row in text]) for text in x]))
    # Neither on memory that lies around it.
    assert torch.equal(own(torch.cat([x, x], -1)[..., :65]), together)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_zero_tiny_or_not_finite(backend: str) -> None:
    linear = layer(20, 9)
    own = Int8Linear(linear, backend)
    x = torch.randn(5, 9)
    x[0], x[1], x[2, 4], x[3, 8] = 0, 1e-40, torch.nan, -torch.inf
    found = own(x)
    assert torch.equal(found[:2], linear.bias.detach().expand(2, 20))
    assert found[2:4].isnan().all() and found[4].isfinite().all()
    assert own(x[:0]).shape == (0, 20)


@pytest.mark.cpu
def test_products_are_exact() -> None:
    """Rows and weights of whole numbers whose largest is 127 come out as their integer products."""
    torch.manual_seed(1)
    x, weight = (torch.randint(-127, 128, shape) for shape in ((13, 2000), (70, 2000)))
    x[:, 0] = weight[:, -1] = 127
    linear = nn.Linear(2000, 70, bias=False)
    linear.weight = nn.Parameter(weight.float())
    values, scale = quantize(linear.weight)
    assert torch.equal(values.long(), weight) and torch.equal(scale, torch.ones(70))
    for backend in ("folded", "cpu"):
        assert torch.equal(Int8Linear(linear, backend)(x.float()), (x @ weight.T).float())


@pytest.mark.cpu
def test_threads_share_the_work() -> None:
    linear, x = layer(130, 70), torch.randn(300, 70)
    own = Int8Linear(linear, "cpu")
    assert_same_on_any_threads(lambda: [own(x), own(x[:2])])


def test_other_dtypes_and_layers_in_place() -> None:
    model = nn.Sequential(layer(16, 8), nn.ReLU(), nn.Sequential(layer(4, 16, seed=1)))
    x = torch.randn(6, 8)
    expected = model(x)
    assert replace_linear(model) == 2 and isinstance(model[2][0], Int8Linear)
    assert (model(x) - expected).abs().max() < 0.05 * expected.abs().max()
    assert model(x.bfloat16()).dtype == torch.bfloat16 and not model(x).requires_grad


def test_weights_that_cannot_be_held_are_refused() -> None:
    linear = layer(3, 4)
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    with pytest.raises(ArgumentError, match="finite"):
        Int8Linear(linear)
    with pytest.raises(ArgumentError, match="65536"):
        Int8Linear(nn.Linear(65537, 1))
