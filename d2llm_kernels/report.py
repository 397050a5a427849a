"""What is installed, which backend serves what and why, and the tiles that its kernels run with."""

import os
import platform

import torch

from d2llm_kernels.backends import (
    ENVIRONMENT,
    FASTEST,
    NAMES,
    OPERATIONS,
    installed_triton,
    missing,
    select,
    unsupported,
)
from d2llm_kernels.errors import KernelError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def explain(arch: str | None = None) -> str:
    """Versions, device, every backend with the reason where it is missing, and the choice for each kind of tensor.

    Args:
        arch: also list the tiles of the Triton kernels for this architecture ("sm_90", "gfx942"); by default
            those for the GPU that is here.
    """
    triton = installed_triton()
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, triton {triton or 'not installed'}, "
        f"{platform.machine()}",
        f"device: {_device()}",
        f"{ENVIRONMENT}: {os.environ.get(ENVIRONMENT) or 'not set'}",
        "",
        "backends",
    ]
    lines += [f"  {name:<10} {missing(name) or 'available'}" for name in NAMES[1:]]
    lines += ["", f"chosen by 'auto' for {', '.join(OPERATIONS)}"]
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        for dtype in _DTYPES:
            lines.append(f"  {device:<5} {_name(dtype):<10} {_choice(device, dtype)}")
    if arch is None and torch.cuda.is_available():
        from d2llm_kernels.triton.table import architecture

        arch = architecture(torch.device("cuda"))
    if arch is not None and triton:
        lines += ["", *_tiles(arch)]
    return "\n".join(lines)


def _choice(device: str, dtype: torch.dtype) -> str:
    try:
        chosen = select("auto", device, dtype)
    except KernelError as error:
        return f"none: {error}"
    passed_over = FASTEST[device][: FASTEST[device].index(chosen)] if chosen in FASTEST[device] else FASTEST[device]
    reasons = "; ".join(f"not {name}: {unsupported(name, device, dtype)}" for name in passed_over)
    return f"{chosen:<8} ({reasons})" if reasons else chosen


def _tiles(arch: str) -> list[str]:
    """The rows of the table that hold for ``arch``; widths between rows take the nearest one."""
    from d2llm_kernels.triton.table import rows

    lines = [f"tiles of the Triton kernels on {arch}"]
    for row in rows():
        if arch in row["archs"]:
            widths = " ".join(f"{letter}={width}" for letter, width in row["widths"].items())
            tiles = " ".join(f"{name}={value}" for name, value in row["tiles"].items())
            dtypes = "/".join(row["dtypes"])
            lines.append(f"  {row['kernel']:<14} {dtypes:<24} {widths:<13} {tiles} ({row['source']})")
    return lines if len(lines) > 1 else [f"{lines[0]}: no rows; those of the nearest older architecture are used"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device() -> str:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    return f"CPU, {torch.get_num_threads()} threads"
