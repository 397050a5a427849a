"""The LLM compiled by torch: norms, rotations and activations in one pass each, at any batch and length.

It takes a minute or more, once for each process that has no earlier one's cache, and saves a share of every call: for
long encodes and trainings.
"""

import torch
from torch import Tensor, nn

from d2llm.errors import MissingError


def check_compiler(device: torch.device) -> None:
    """Compile next to nothing, to tell before the work starts.

    Raises:
        MissingError: if torch cannot compile for the device here.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise MissingError(
            f"torch.compile: expected it to work on {device}, got {str(error).splitlines()[0][:200]}; install a C++ "
            "compiler (a package such as g++), or go without compiling"
        ) from None


def compile_in_place(module: nn.Module) -> None:
    """Let torch compile a module's forward when it is called; the object, its weights and their names stay."""
    module.compile(dynamic=True)


def is_single(tokens: Tensor) -> bool:
    """Whether a batch has one text or one token, for which a graph of its own would be compiled."""
    return 1 in tokens.shape
