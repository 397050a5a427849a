"""Which passes of an operation a row times: "f" forward, "b" backward alone, "fb" both."""

from collections.abc import Callable

import torch

NAMES = {"f": "forward", "b": "backward", "fb": "forward+backward"}


def gradients_of(passes: str) -> list[bool]:
    """What to judge: False for the outputs, True for the gradients."""
    return [gradients for letter, gradients in (("f", False), ("b", True)) if letter in passes]


def differentiated(forward: Callable[[], object], leaves: list[torch.Tensor], passes: str) -> Callable[[], object]:
    """The passes of a literal form; its backward pass alone keeps the graph of one forward pass."""
    if passes == "f":

        def evaluate() -> object:
            with torch.no_grad():
                return forward()

        return evaluate
    for leaf in leaves:
        leaf.requires_grad_()
    kept = _outputs(forward()) if passes == "b" else None
    slopes = [torch.randn_like(out) for out in (_outputs(forward()) if kept is None else kept)]

    def differentiate() -> object:
        outputs = _outputs(forward()) if kept is None else kept
        return torch.autograd.grad(outputs, leaves, slopes, retain_graph=kept is not None, allow_unused=True)

    return differentiate


def _outputs(value: object) -> list[torch.Tensor]:
    return [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, torch.Tensor)]
