"""Exceptions of the kernels: each names the argument, what was expected and what came."""

from typing import Any

from torch import Tensor


class KernelError(Exception):
    """Base of every error that a caller of the kernels can cause and mend."""


class ArgumentError(KernelError, ValueError):
    """A tensor or option that cannot be used as given."""


class BackendError(KernelError, RuntimeError):
    """A backend that was asked for by name and cannot do what is asked."""


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raise ``ArgumentError`` with the name of the argument unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(f"{name}: expected {expected}, got {got}")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape as a plain tuple, for messages."""
    return tuple(tensor.shape)
