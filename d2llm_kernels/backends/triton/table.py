"""Which tiles a kernel runs with: a table keyed by architecture, dtype and widths, never a search at run time.

``table.json`` holds the rows. A row that was timed says on which GPU; one that was not says "estimated" and rests on
the compiler's figures alone. ``tools/tune.py`` times the candidates on the GPU at hand and writes rows. Tiles must not
depend on the batch: a text's result would then change with its neighbours.
"""

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from d2llm_kernels.tensors import accumulate_dtype

PATH = Path(__file__).with_name("table.json")
INTERPRETER = "interpreter"

Tiles = dict[str, Any]

_ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# The smallest block that a matrix unit multiplies.
_UNIT = 16
#: Most products of float32 that may be added up inside matrix units, which cut sums off, before the sum goes to an
#: ordinary addition: with more the error outgrows the contract's (docs/kernels/triton.md, float32).
DEEPEST = 64
# Blocks whose size that number is, by kernel; the others multiply no matrices.
_DEPTHS = {
    "pool_forward": ("BLOCK_L", "BLOCK_D"),
    "pool_products": ("BLOCK_D",),
    "pool_gradients": ("BLOCK_L",),
    **dict.fromkeys(("scores", "features", "slopes", "slopes_features", "inputs", "weights", "lora"), ("BLOCK_K",)),
}


@cache
def rows() -> list[dict[str, Any]]:
    """The rows of ``table.json``: kernel, archs, dtypes, widths, tiles, and where their figures come from."""
    return read(PATH)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table."""
    loaded: list[dict[str, Any]] = json.loads(path.read_text())
    return loaded


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a table, a line each row, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    os.replace(temporary, path)


def architecture(device: torch.device) -> str:
    """Name of the device's instruction set: "sm_90", "gfx942"; "interpreter" for CPU tensors."""
    return INTERPRETER if device.type == "cpu" else _gpu(device.index or 0)


@cache
def _gpu(index: int) -> str:
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def elements(arch: str, dtype: torch.dtype) -> Tiles:
    """Dtypes of operands and sums for kernels whose inputs promote to ``dtype``.

    float32 is multiplied on NVIDIA's matrix units as three products of tf32 numbers, whose error is that of float32.
    """
    precision = "tf32x3" if arch.startswith("sm_") else "ieee"
    return {"DTYPE": _ELEMENTS[dtype], "SUM": _ELEMENTS[accumulate_dtype(dtype)], "PRECISION": precision}


@cache
def tiles(kernel: str, arch: str, dtype: torch.dtype, **widths: int) -> Tiles:
    """Tiles of the row nearest to ``widths`` in the table, made to fit them."""
    row = nearest(kernel, arch, dtype, widths)
    # Multiply-adds may be fused; Triton 3.9 wants to be told.
    chosen = {"enable_fp_fusion": True, **row["tiles"]}
    hard = widths.get("K")
    if hard is not None:
        # All K at once against as many columns as keep the row's number of triples.
        triples = chosen["BLOCK_N"] * triton.next_power_of_2(row["widths"]["K"])
        chosen["BLOCK_K"] = triton.next_power_of_2(max(1, hard))
        chosen["BLOCK_N"] = max(1, triples // chosen["BLOCK_K"])
        return chosen
    heads = widths.get("H")
    if heads is not None:
        chosen["BLOCK_H"] = max(_UNIT, triton.next_power_of_2(heads))
    if "R" in widths:
        chosen["BLOCK_R"] = max(_UNIT, triton.next_power_of_2(widths["R"]))
    width = max(_UNIT, triton.next_power_of_2(widths["D"] if "D" in widths else widths["F"]))
    for name in ("BLOCK_D", "SLICE", "BLOCK_N", "BLOCK_K"):
        if name in chosen:
            chosen[name] = min(chosen[name], width)
    return chosen


def depth(kernel: str, tiles: Tiles) -> int:
    """Most products of float32 that a kernel adds up inside matrix units; 0 where it multiplies no matrices."""
    return max((tiles[name] for name in _DEPTHS.get(kernel, ())), default=0)


def nearest(kernel: str, arch: str, dtype: torch.dtype, widths: dict[str, int]) -> dict[str, Any]:
    """The row of a kernel for an architecture (else for the newest older one) whose widths are nearest in octaves."""
    name = str(dtype).removeprefix("torch.")
    fitting = [row for row in rows() if row["kernel"] == kernel and (name in row["dtypes"])]
    here = [row for row in fitting if arch in row["archs"]]
    if not here:
        known = sorted({a for row in fitting for a in row["archs"] if _family(a)[0] == _family(arch)[0]}, key=_family)
        older = [a for a in known if _family(a) <= _family(arch)] or known[:1] or ["sm_80"]
        here = [row for row in fitting if older[-1] in row["archs"]]

    def distance(row: dict[str, Any]) -> float:
        return sum(abs(math.log2(max(1, width) / row["widths"][letter])) for letter, width in widths.items())

    return min(here, key=distance)


def _family(arch: str) -> tuple[str, int]:
    letters = arch.rstrip("0123456789abcdef") if arch.startswith("gfx") else arch.split("_")[0]
    digits = arch[len(letters) :].lstrip("_")
    return letters, int(digits, 16) if letters == "gfx" and digits else int(digits or 0)
