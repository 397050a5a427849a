"""Operators that are called past all checks, and functions that check: they refuse by name, or compute."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2llm_kernels import functional
from d2llm_kernels.backends.cpu import library
from d2llm_kernels.errors import KernelError
from tests.kernels.operator_cases import ACCEPTED
from tests.torture import worker

_DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int8,
    torch.bool,
    torch.complex64,
)
_NUMBERS = (0, 1, -1, 2, 5, 1 << 31, 1 << 62, -(1 << 63), 0.0, -1.0, 1e-40, float("nan"), float("inf"))


def mutated_tensor(generator: random.Random, value: Tensor) -> Tensor:
    """Another shape, number type, layout or content."""
    kind = generator.randrange(9)
    dim = generator.randrange(value.dim()) if value.dim() else 0
    if kind == 0:
        return value.to(generator.choice(_DTYPES))
    if kind == 1:
        return value[None] if generator.random() < 0.5 else value[..., None]
    if kind == 2 and value.dim():
        sizes = list(value.shape)
        sizes[dim] = generator.choice((0, 1, 2, 3, sizes[dim] + 1, sizes[dim] * 2, 64, 4096))
        return torch.zeros(sizes, dtype=value.dtype)
    if kind == 3 and value.dim() > 1:
        return value.transpose(dim, dim - 1)
    if kind == 4 and value.dim():
        return value.select(dim, 0) if value.shape[dim] else value
    if kind == 5 and value.dim():
        return torch.cat([value, value], dim).narrow(dim, value.shape[dim] // 2, value.shape[dim])
    if kind == 6 and value.dim():
        # A step of 0, as expand makes: all rows are one.
        return value.narrow(dim, 0, min(1, value.shape[dim])).expand(value.shape)
    if kind == 7:
        return value.flatten()
    changed = value.clone(memory_format=torch.contiguous_format)
    if changed.numel():
        number = generator.choice(_NUMBERS)
        fits = changed.is_floating_point() or (number == number and abs(number) < 128)
        changed.view(-1)[generator.randrange(changed.numel())] = number if fits else 1
    return changed


def mutated_arguments(generator: random.Random, arguments: dict[str, Any]) -> list[Any]:
    """One to three arguments exchanged."""
    changed = dict(arguments)
    for name in generator.choices(list(changed), k=generator.choice((1, 1, 2, 3))):
        value = changed[name]
        if generator.random() < 0.1:
            changed[name] = None
        elif isinstance(value, Tensor):
            changed[name] = mutated_tensor(generator, value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            changed[name] = generator.choice(_NUMBERS)
    return list(changed.values())


def call(operator: Callable[..., Any], arguments: list[Any]) -> bool:
    """Whether the operator takes arguments; then it gives the same twice, whatever lay in memory between."""
    try:
        first = operator(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        assert "INTERNAL ASSERT" not in str(error) and "Tried to allocate" not in str(error), error
        return False
    [torch.full((size,), float("nan")) for size in (8, 64, 1024)]
    second = operator(*arguments)
    pairs = [(first, second)] if isinstance(first, Tensor) else zip(first, second, strict=True)
    for one, other in pairs:
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), "two calls differ"
    return True


def compiled(generator: random.Random, folder: Path) -> bool:
    """The operators of the C++ library."""
    name, arguments = generator.choice(ACCEPTED)
    return call(getattr(library.operators(), name), mutated_arguments(generator, arguments))


def packaged(generator: random.Random, folder: Path) -> bool:
    """The package's operators over the C++ library, past the checks of its functions: any error, and no crash."""
    name, arguments = generator.choice([(name, given) for name, given in ACCEPTED if hasattr(torch.ops.d2llm, name)])
    given = mutated_arguments(generator, arguments)
    if name.startswith("iem"):
        # The task comes before what is no tensor.
        given.insert(len(given) - (name in ("iem_pairs", "iem_topk")), None)
    given.append("cpu")
    if name in ("attn_pool_backward", "iem_scores_backward", "iem_pairs_backward"):
        given.append([True] * (2 if "pool" in name else 6))
    try:
        return call(getattr(torch.ops.d2llm, name), given)
    except (AttributeError, IndexError, AssertionError) as error:
        if "two calls" in str(error):
            raise
        return False


def functions(generator: random.Random, folder: Path) -> bool:
    """The functions that check what they are given: an error of the package, whichever backend does the work."""
    name, arguments = generator.choice([(name, given) for name, given in ACCEPTED if name in FUNCTIONS])
    given = dict(zip(arguments, mutated_arguments(generator, arguments), strict=True))
    for argument, value in arguments.items():
        if given[argument] is None and value is not None and argument not in OPTIONAL:
            given[argument] = value
    if "offsets" in given:
        given["cu_seqlens"] = given.pop("offsets")
    if given.get("return_features", True) not in (True, False):
        given["return_features"] = True
    backend = generator.choice(("cpu", "folded", "reference"))
    try:
        FUNCTIONS[name](**given, backend=backend)
    except KernelError:
        return False
    return True


OPTIONAL = ("mask", "offsets", "s_in_batch", "duplicates")
FUNCTIONS = {
    "attn_pool": functional.attn_pool,
    "iem_scores": functional.iem_scores,
    "iem_pairs": functional.iem_pairs,
    "iem_topk": functional.iem_topk,
    "in_batch_terms": functional.in_batch_terms,
}
TARGETS: dict[str, worker.Try] = {"compiled": compiled, "packaged": packaged, "functions": functions}
