"""The compiled library of the C++ kernels: loaded at first use, and only if built for the torch that runs."""

from functools import cache
from types import ModuleType
from typing import Any

import torch

from d2llm_kernels.backends import extension

#: Another file to load in place of the installed library.
LIBRARY = "D2LLM_KERNELS_LIBRARY"
_EXTENSION = extension.Extension("_cpu", LIBRARY)


@cache
def missing() -> str | None:
    """Why the library cannot be used, or None once it is loaded."""
    return extension.missing(_EXTENSION)


def module() -> ModuleType:
    """The extension's module; importing it registers the operators.

    Raises:
        ImportError: if there is none, or it does not fit.
    """
    return extension.load(_EXTENSION)


def operators() -> Any:
    """The namespace of the library's operators."""
    module()
    return torch.ops.d2llm_cpu


def classes() -> Any:
    """The namespace of the library's classes."""
    module()
    return torch.classes.d2llm_cpu
