"""What tests of kernels share: backends with the dtypes they take, inputs of the interaction, common checks."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.profiler import ProfilerActivity, profile

from d2llm_kernels import IEM, backends

_DTYPES = {
    "folded": (torch.float64, torch.float32, torch.bfloat16),
    "cpu": (torch.float32, torch.bfloat16),
}

# How many threads the backend shares its work out over itself; None leaves it to torch. Two do what four do.
_THREADS = {"cpu": (1, 2, 4)}
_REPEATS = (2,)


def _param(*values: object, label: str | None = None, full: bool = False) -> object:
    reason = backends.missing(str(values[0]))
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param(*values, marks=[*marks, pytest.mark.full] if full else marks, id=label)


def _parity(name: str, dtype: torch.dtype, threads: int | None) -> object:
    label = f"{name}-{str(dtype).removeprefix('torch.')}" + (f"-{threads}threads" if threads else "")
    return _param(name, dtype, threads, label=label, full=threads in _REPEATS)


#: Names of the backends.
BACKENDS = [_param(name) for name in _DTYPES]
#: (backend, dtype).
CASES = [_param(name, dtype) for name, dtypes in _DTYPES.items() for dtype in dtypes]
#: (backend, dtype, threads) of the parity tests; the fixture `threads` sets the number.
PARITY = [
    _parity(name, dtype, threads)
    for name, dtypes in _DTYPES.items()
    for dtype in dtypes
    for threads in _THREADS.get(name, (None,))
]
#: The tensors of the interaction, in the order of its functions.
NAMES = ("a", "b", "weight", "bias", "out_weight", "out_bias")
#: The task of each of seven rows; of three branches the middle one has none.
TASKS = torch.tensor([2, 0, 0, 2, 0, 2, 0])


def pair_inputs(queries: int, passages: int, hidden: int, seed: int = 0) -> tuple[Tensor, ...]:
    """a (queries, hidden), b (passages, hidden) and the four tensors of a branch, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    projections = (normal(queries, hidden), normal(passages, hidden))
    weights = (normal(hidden, hidden, scale=max(hidden, 1) ** -0.5), normal(hidden), normal(1, hidden), normal(1))
    return (*projections, *weights)


def task_inputs(queries: int = 7, passages: int = 40, hidden: int = 20, tasks: int = 3) -> list[Tensor]:
    """As ``pair_inputs``, with the weights of several branches stacked."""
    generator = torch.Generator().manual_seed(queries + passages)
    shapes = ((queries, hidden), (passages, hidden), (tasks, hidden, hidden), (tasks, hidden), (1, hidden), (1,))
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[2] /= math.sqrt(hidden)
    return tensors


def by_rows(call: Callable[..., tuple[Tensor, ...]], given: bool) -> Callable[..., tuple[Tensor, ...]]:
    """``call`` row by row by the branch of ``TASKS``; ``given`` says that a row has a passage of its own."""

    def run(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, *out: Tensor) -> tuple[Tensor, ...]:
        rows = [
            call(a[i : i + 1], b[i : i + 1] if given else b, weight[t], bias[t], *out)
            for i, t in enumerate(TASKS.tolist())
        ]
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    return run


def branch_of(iem: IEM, task: int) -> list[Tensor]:
    """The weights of a task's branch."""
    projection = iem.get_submodule(f"proj{task}")
    return [projection.weight, projection.bias, iem.linear2.weight, iem.linear2.bias]


def gradients_but(frozen: Sequence[str], call: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]):
    """Gradients of the sum of the squares of ``call``'s first output, None for each of ``NAMES`` that is frozen."""
    leaves = [t.float().requires_grad_(name not in frozen) for name, t in zip(NAMES, tensors, strict=True)]
    call(*leaves)[0].square().sum().backward()
    return [leaf.grad for leaf in leaves]


def needs_even_products(backend: str, dtype: torch.dtype, width: int) -> None:
    """Skip a test of equal bits at another place where it is torch's product that gives other ones.

    The C++ kernels promise equal bits themselves. The folded form lays rows out alike and hands them to whatever BLAS
    torch has: MKL did right by them with every choice of instructions, but not with each of MKL_CBWR.
    """
    if backend == "folded" and not _even_products(dtype, width):
        pytest.skip(f"torch's {dtype} product of width {width} gives equal rows other bits at another place here")


@cache
def _even_products(dtype: torch.dtype, width: int) -> bool:
    """Whether whole groups of equal rows have equal bits, in products of any height."""
    generator = torch.Generator().manual_seed(0)
    room, wide = -(-width // 16) * 16, torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    for _ in range(8):
        row, weight, bias, last = normal(width).relu(), normal(width, width), normal(width), normal(width)
        rows = row.new_empty(1024, room)[:, :width].copy_(row)
        first = None
        for height in (16, 32, 48, 256, 272, 512, 1024):
            hidden = torch.addmm(bias, rows[:height], weight.T, out=row.new_empty(height, room)[:, :width])
            z = torch.mv(hidden.to(wide), last.to(wide))
            first = (hidden[0].clone(), z[0].clone()) if first is None else first
            if (hidden != first[0]).any() or (z != first[1]).any():
                return False
    return True


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with NaN between any two elements: a kernel that takes them for contiguous reads it."""
    return [torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0] for tensor in tensors]


def with_gradients(function: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of ``function`` and the gradients of their sum, for tensors taken as they lie."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = function(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), leaves)]


def assert_same_on_any_threads(call: Callable[[], Sequence[Tensor]]) -> None:
    """Assert that the outputs of ``call`` have equal bits on any number of threads, and when it is repeated."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 4):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def opcheck_backward(operator: Callable[..., object], *arguments: object) -> None:
    """``torch.library.opcheck`` of an operator whose last argument says which of two sorts of gradients are wanted."""
    torch.library.opcheck(operator, (*arguments, (True, True)))
    for wanted in ((True, False), (False, True)):
        # Only shapes differ.
        torch.library.opcheck(operator, (*arguments, wanted), test_utils=("test_schema", "test_faketensor"))


def saved_for_backward(call: Callable[[], object]) -> dict[int, int]:
    """The storages that ``call`` keeps for its backward: by address, their bytes."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return kept


def largest_allocation(call: Callable[[], object]) -> int:
    """Bytes of the largest allocation that ``call`` makes on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    return max(event.self_cpu_memory_usage for event in recorded.events())


def twins(make: Callable[..., Module], dtype: torch.dtype = torch.float64) -> tuple[Module, Module]:
    """The module that ``make(backend=...)`` gives, folded and literal, with the same weights."""
    torch.manual_seed(0)
    folded, literal = make(backend="folded").to(dtype), make(backend="reference").to(dtype)
    literal.load_state_dict(folded.state_dict())
    return folded, literal
