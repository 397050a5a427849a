"""Where a model computes when nobody says so."""

import torch


def accelerator() -> torch.device | None:
    """The accelerator at hand, if any: a torch that is built for one names it on machines that have none, too."""
    return torch.accelerator.current_accelerator(check_available=True)


def best_device() -> torch.device:
    """The accelerator at hand, else the CPU."""
    return accelerator() or torch.device("cpu")
