"""What is installed, and which backend serves what."""

import os
import platform

import torch

from d2llm_kernels.backends import ENVIRONMENT, NAMES, OPERATIONS, missing, select
from d2llm_kernels.errors import KernelError


def explain() -> str:
    """Versions, device, every backend with the reason where it is missing, and the choice for each operation."""
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}",
        f"device: {_device()}",
        f"{ENVIRONMENT}: {os.environ.get(ENVIRONMENT) or 'not set'}",
        "",
        "backends",
    ]
    for name in NAMES[1:]:
        lines.append(f"  {name:<10} {missing(name) or 'available'}")
    lines += ["", "chosen by 'auto'"]
    try:
        chosen = select("auto")
    except KernelError as error:
        chosen = f"none: {error}"
    lines += [f"  {operation:<10} {chosen}" for operation in OPERATIONS]
    return "\n".join(lines)


def _device() -> str:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    return f"CPU, {torch.get_num_threads()} threads"
