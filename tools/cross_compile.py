"""Compile every Triton kernel, with the tiles of the table, for a GPU that need not be here; read its figures.

    python tools/cross_compile.py --arch sm_90                  # a table
    python tools/cross_compile.py --arch sm_90 --json out.json  # and the figures
    python tools/cross_compile.py --arch sm_90 --once           # of each kernel one variant a number type

The package's own functions are called on tensors without data, and each kernel launch is recorded instead of made: what
is compiled here is what would run there, argument for argument.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if os.environ.pop("TRITON_INTERPRET", None):
    raise SystemExit("TRITON_INTERPRET is set: the interpreter compiles nothing")

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from d2llm_kernels.backends.triton import operations as triton_backend
from d2llm_kernels.backends.triton import table
from d2llm_kernels.branch import Branch, InBatch

# Shared memory that a block can have, in bytes (CUDA C++ programming guide, technical specifications by compute
# capability; CDNA 3 white paper).
SHARED_LIMIT = {"sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376, "gfx942": 65536}
ARCHS = tuple(SHARED_LIMIT)
MATRIX = {"sm": r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\S*", "gfx": r"\bv_mfma_\w+"}
ELEMENTS = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.int32: "i32",
    torch.int64: "i64", torch.uint8: "u8", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip


class Launch(NamedTuple):
    """A kernel launch that was asked for: kernel, arguments by name, and a label of the case."""

    case: str
    kernel: JITFunction
    arguments: dict[str, Any]


@contextmanager
def recorded(arch: str, case: str, launches: list[Launch]) -> Iterator[None]:
    """Record kernel launches in place of making them, while the package takes the tiles of ``arch``."""
    run, architecture = JITFunction.run, table.architecture

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(case, self, dict(zip(self.arg_names, args, strict=False)) | kwargs))

    JITFunction.run, table.architecture = record, lambda device: arch
    try:
        yield
    finally:
        JITFunction.run, table.architecture = run, architecture


def source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton would compile for a launch: the source with its specialised arguments, and the options.

    Tensors without data count as aligned where their storage begins, as what allocators return is.
    """
    signature, constants, attributes = {}, {}, {}
    options = {k: v for k, v in launch.arguments.items() if k not in launch.kernel.arg_names}
    for index, parameter in enumerate(launch.kernel.params):
        value, specialised = launch.arguments[parameter.name], not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + ELEMENTS[value.dtype]
            place = value.storage_offset() * value.element_size()
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
            continue
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            place = value
        if specialised and not parameter.do_not_specialize_on_alignment and place % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes), options


def target(arch: str) -> GPUTarget:
    """Triton's name for an architecture."""
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)


def figures(arch: str, compiled: CompiledKernel) -> dict[str, Any]:
    """Shared memory, registers, spilled bytes and matrix instructions of a compiled kernel.

    For NVIDIA also its products of blocks, and how many of them are added to zero.
    """
    if arch.startswith("gfx"):
        code = compiled.asm["amdgcn"]
        code = code if isinstance(code, str) else code.decode()

        def count(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", code).group(1))

        usage = {"registers": count("vgpr_count"), "spills": count("vgpr_spill_count")}
        found = re.findall(MATRIX["gfx"], code)
    else:
        usage = _usage(compiled.asm["cubin"]) | _sums(compiled.asm["ttgir"])
        found = [match.group(0) for match in re.finditer(MATRIX["sm"], compiled.asm["ptx"])]
    return {"shared": compiled.metadata.shared, **usage, "matrix": sorted(set(found))}


def _sums(code: str) -> dict[str, int]:
    """Products of blocks in Triton's code for a GPU, and those that begin a sum."""
    zeros = {*re.findall(r"(%\w+) = arith\.constant dense<0\.0+e\+00>", code), "%false"}
    sums = re.findall(r"= (?:tt\.dot|ttng\.warp_group_dot) %[\w#]+, %[\w#]+, (%[\w#]+)", code)
    # Tensor memory is added to, or not.
    sums += re.findall(r"ttng\.tc_gen5_mma %[\w#]+, %[\w#]+, %[\w#\[\]]+, (%\w+)", code)
    return {"products": len(sums), "from_zero": sum(name in zeros for name in sums)}


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", printed)
    assert found, printed
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spills": stack + local}


def report(arch: str, launches: list[Launch], workers: int) -> list[dict[str, Any]]:
    """Compile each distinct launch and return a row of figures for it; an error becomes the row's ``error``."""
    distinct: dict[str, tuple[Launch, ASTSource, dict[str, Any]]] = {}
    for launch in launches:
        code, options = source(launch)
        distinct.setdefault(code.hash() + json.dumps(options, sort_keys=True), (launch, code, options))

    def row(item: tuple[Launch, ASTSource, dict[str, Any]]) -> dict[str, Any]:
        launch, code, options = item
        tiles = {k: v for k, v in launch.arguments.items() if k.isupper() and isinstance(v, int)} | options
        head = {"arch": arch, "kernel": launch.kernel.__name__, "case": launch.case, "tiles": tiles}
        try:
            return head | figures(arch, triton.compile(code, target=target(arch), options=options))
        except Exception as error:
            return head | {"error": f"{type(error).__name__}: {error}"}

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(row, distinct.values()))


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that between them launch every kernel with every row of the table, and each variant at the largest widths.

    float16 takes the rows of bfloat16 and differs in the letters of its instructions alone.
    """
    for dtype in (torch.bfloat16, torch.float32):
        widths = sorted({(w["D"], w["H"]) for w in _widths("H")})
        for width, heads in widths:
            yield from _pooling(dtype, width, heads, every=(width, heads) == widths[-1])
        for width in sorted({w["F"] for w in _widths("F")}):
            yield from _interaction(dtype, width)
        for hard in sorted({0, *(w["K"] for w in _widths("K"))}):
            yield from _in_batch(dtype, hard, every=hard == 8 and dtype == torch.float32)
        for width, rank in sorted({(w["D"], w["R"]) for w in _widths("R")}):
            yield from _lora(dtype, width, rank)


def _widths(letter: str) -> list[dict[str, int]]:
    found = [row["widths"] for row in table.rows() if row["archs"] != [table.INTERPRETER]]
    return [widths for widths in found if letter in widths]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _pooling(dtype: torch.dtype, width: int, heads: int, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    x, u, dpooled = (_meta(*s, dtype=dtype) for s in ((64, 256, width), (heads, width), (64, heads, width)))
    dlse = _meta(64, heads, dtype=torch.float32)
    mask, offsets = _meta(64, 256, dtype=torch.bool), _meta(65, dtype=torch.int32)
    kinds = {"packed": (None, offsets), "masked": (mask, None), "whole": (None, None)}
    for kind, where in kinds.items() if every else [("packed", (None, offsets))]:
        label = f"{str(dtype).removeprefix('torch.')} D={width} H={heads} {kind}"
        tokens = x.flatten(0, 1) if kind == "packed" else x
        yield label, partial(triton_backend.attn_pool, tokens, u, *where)
        for wanted in ((True, True), (True, False), (False, True)) if every and kind == "packed" else [(True, True)]:
            yield label, partial(triton_backend.attn_pool_backward, dpooled, dlse, tokens, u, *where, wanted)


def _interaction(dtype: torch.dtype, width: int) -> Iterator[tuple[str, Callable[[], object]]]:
    a, b = _meta(48, width, dtype=dtype), _meta(4096, width, dtype=dtype)
    branch = Branch(*(_meta(*s, dtype=dtype) for s in ((width, width), (width,), (1, width), (1,))))
    dz, dfeatures = _meta(48, 4096, dtype=torch.float32), _meta(4096, width, dtype=dtype)
    label = f"{str(dtype).removeprefix('torch.')} F={width}"
    stacked = Branch(_meta(2, width, width, dtype=dtype), _meta(2, width, dtype=dtype), *branch[2:])
    for kind, some, task, tasks in (("", branch, None, None), (" tasks", stacked, *_tasks(48, 4096))):
        yield f"{label} all{kind}", partial(triton_backend.iem_scores, a, b, some, task)
        yield f"{label} all{kind}", partial(triton_backend.iem_scores_backward, dz, a, b, some, task, (True, True))
        yield f"{label} topk{kind}", partial(triton_backend.iem_topk, a, b, some, task, 100)
        for name, slopes in (("pairs", None), ("features", dfeatures)):
            yield f"{label} {name}{kind}", partial(triton_backend.iem_pairs, b, b, some, tasks, slopes is not None)
            yield (
                f"{label} {name}{kind}",
                partial(triton_backend.iem_pairs_backward, dz[0], slopes, b, b, some, tasks, (True, True)),
            )


def _tasks(*sizes: int) -> list[Tensor]:
    return [_meta(size, dtype=torch.int64) for size in sizes]


def _in_batch(dtype: torch.dtype, hard: int, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    z_in_batch, z_hard = _meta(4096, 4096, dtype=dtype), _meta(4096, hard, dtype=dtype)
    teacher, duplicates = torch.empty_like(z_in_batch), _meta(4096, 4096, dtype=torch.bool)
    rows = _meta(4096, dtype=torch.float32)
    kinds = {"masked": (teacher, duplicates), "judged": (teacher, None), "whole": (None, None)}
    slopes = {"both": (rows, rows), "entropy": (rows, None), "pairs": (None, rows)}
    for kind, where in kinds.items() if every else [("masked", kinds["masked"])]:
        label = f"{str(dtype).removeprefix('torch.')} K={hard} {kind}"
        inputs = InBatch(z_in_batch, z_hard, torch.empty_like(z_hard), *where, 1.0)
        yield label, partial(triton_backend.in_batch_terms, inputs)
        for name, given in slopes.items() if every else [("both", slopes["both"])]:
            yield f"{label} {name}", partial(triton_backend.in_batch_terms_backward, *given, inputs)


def _lora(dtype: torch.dtype, width: int, rank: int) -> Iterator[tuple[str, Callable[[], object]]]:
    x, weight, a, b = (_meta(*s, dtype=dtype) for s in ((8192, width), (width, width), (rank, width), (width, rank)))
    bias, inner = _meta(width, dtype=dtype), _meta(8192, rank, dtype=dtype)
    label = f"{str(dtype).removeprefix('torch.')} D={width} R={rank}"
    yield label, partial(triton_backend.lora_linear, x, weight, None, a, b, 2.0, None)
    yield f"{label} dropout", partial(triton_backend.lora_linear, x, weight, bias, a, b, 2.0, x)
    wanted = (True, False, True, True, False)
    yield (
        f"{label} backward",
        partial(triton_backend.lora_linear_backward, x, x, weight, a, b, inner, 2.0, None, wanted),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", required=True, choices=ARCHS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--case", default="", help="only cases whose label contains this")
    parser.add_argument("--once", action="store_true", help="of each kernel the last case of each number type alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    launches: list[Launch] = []
    for label, call in cases():
        with recorded(options.arch, label, launches):
            call()
    chosen = [x for x in launches if options.kernel in x.kernel.__name__ and options.case in x.case]
    if options.once:
        chosen = list({(x.kernel.__name__, x.case.split()[0]): x for x in chosen}.values())
    rows = report(options.arch, chosen, options.workers)
    for row in rows:
        if "error" in row:
            print(f"{row['kernel']:24} {row['case']:32} {row['error']}")
            continue
        small = {k: v for k, v in row["tiles"].items() if k.startswith(("BLOCK", "SLICE", "SPLITS", "num"))}
        print(
            f"{row['kernel']:24} {row['case']:32} {row['shared'] / 1024:6.1f} KiB {row['registers']:4} registers "
            f"{row['spills']:4} spilled  {' '.join(row['matrix'])[:60]}  {small}"
        )
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
