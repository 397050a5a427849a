"""What is installed, which backend serves what and why, and the tiles that its kernels run with."""

import os
import platform

import torch

from d2llm_kernels import backends
from d2llm_kernels.backends import ENVIRONMENT, NAMES, OPERATIONS, Operation
from d2llm_kernels.backends.triton import installed
from d2llm_kernels.errors import KernelError

_DTYPES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}


def explain(arch: str | None = None) -> str:
    """Versions, device, every backend with the reason where it is missing, and which of them serves which operation.

    Args:
        arch: also list the tiles of the Triton kernels for this architecture ("sm_90", "gfx942"); by default
            those for the GPU that is here.
    """
    triton = installed()
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, triton {triton or 'not installed'}, "
        f"{platform.machine()}",
        f"device: {_device()}",
        f"{ENVIRONMENT}: {os.environ.get(ENVIRONMENT) or 'not set'}",
        "",
        "backends",
    ]
    lines += [f"  {name:<10} {backends.missing(name) or 'available'}" for name in NAMES[1:]]
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        lines += ["", f"what serves tensors on {device}; * is what 'auto' takes", *_matrix(torch.device(device))]
    if arch is None and torch.cuda.is_available():
        from d2llm_kernels.backends.triton.table import architecture

        arch = architecture(torch.device("cuda"))
    if arch is not None and triton:
        lines += ["", *_tiles(arch)]
    return "\n".join(lines)


def _matrix(device: torch.device) -> list[str]:
    """A line for each operation: the number types that each backend takes, and below why it takes no more."""
    present = [name for name in NAMES[1:] if backends.missing(name) is None]
    lines = [f"  {'':<16}{''.join(f'{name:<20}' for name in present)}".rstrip()]
    reasons: dict[tuple[str, str], None] = {}
    for operation in OPERATIONS:
        cells = []
        for name in present:
            found = []
            for dtype, short in _DTYPES.items():
                reason = backends.unsupported(name, operation, device, dtype)
                if reason is None:
                    found.append(short + "*" * (_chosen(operation, device, dtype) == name))
                else:
                    reasons[name, reason.rpartition(", got")[0] or reason] = None
            cells.append(f"{' '.join(found) or '-':<20}")
        lines.append(f"  {operation:<16}{''.join(cells)}".rstrip())
    return lines + [f"  not {name}: {reason}" for name, reason in reasons]


def _chosen(operation: Operation, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        return backends.select(operation, "auto", device, dtype)
    except KernelError:
        # What the environment names is unknown, or does not serve it.
        return None


def _tiles(arch: str) -> list[str]:
    """The rows of the table that hold for ``arch``; widths between rows take the nearest one."""
    from d2llm_kernels.backends.triton.table import rows

    lines = [f"tiles of the Triton kernels on {arch}"]
    for row in rows():
        if arch in row["archs"]:
            widths = " ".join(f"{letter}={width}" for letter, width in row["widths"].items())
            tiles = " ".join(f"{name}={value}" for name, value in row["tiles"].items())
            dtypes = "/".join(row["dtypes"])
            lines.append(f"  {row['kernel']:<14} {dtypes:<24} {widths:<13} {tiles} ({row['source']})")
    return lines if len(lines) > 1 else [f"{lines[0]}: no rows; those of the nearest older architecture are used"]


def _device() -> str:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    return f"CPU, {torch.get_num_threads()} threads"
