"""Compile csrc/cuda with nvcc for GPUs that need not be here, and read the figures of every kernel.

    python -m tools.cuda_figures 80 90a                  # a table for each architecture
    python -m tools.cuda_figures 90a --json out.json     # and the figures

Registers and spills are the compiler's; the instructions are counted in the machine code.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CUDA = Path(__file__).parents[1] / "csrc/cuda"
ARCHS = ("80", "90a", "100a", "120a")
_FLAGS = ("-std=c++17", "-O3", "-cubin", "-Xptxas", "-v")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def sources() -> list[Path]:
    """The files that hold kernels."""
    return sorted(CUDA.rglob("*.cu"))


def missing() -> str | None:
    """What is not installed here that this needs, or None."""
    if shutil.which("nvcc") is None:
        return "no nvcc"
    return None if _cuobjdump() else "no cuobjdump, neither beside nvcc nor in the package triton"


def figures(source: Path, arch: str, float16: bool = True) -> list[dict[str, Any]]:
    """Of every kernel in ``source``: registers, static shared memory, stack and spills in bytes, and instructions.

    Without ``float16`` those of bfloat16 stand for its kernels.

    Raises:
        RuntimeError: if it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        less = [] if float16 else ["-DD2LLM_WITHOUT_FLOAT16"]
        command = ["nvcc", *_FLAGS, *less, code, f"-I{CUDA}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{source.name}, sm_{arch}: {done.stdout}{done.stderr}")
        rows = list(_reported(done.stdout + done.stderr))
        if rows:
            counted = _instructions(cubin)
            for row in rows:
                row |= {"file": source.name, "arch": f"sm_{arch}", "instructions": counted[row["symbol"]]}
        return rows


def _reported(text: str) -> Iterator[dict[str, Any]]:
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", text)[1:]:
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if not (entry and spills and used):
            raise RuntimeError(f"not understood: {part}")
        stack, stores, loads = map(int, spills.groups())
        figures = {"registers": int(used[1]), "shared": int(used[2] or 0), "stack": stack, "spills": stores + loads}
        yield {"symbol": entry[1], "kernel": _readable(entry[1])} | figures


def _readable(symbol: str) -> str:
    done = subprocess.run(["c++filt", "-p", symbol], capture_output=True, text=True, check=False)
    name = done.stdout.strip() if done.returncode == 0 else symbol
    return re.sub(r"d2llm::|\(anonymous namespace\)::", "", name)


def _cuobjdump() -> str | None:
    try:
        import triton

        packed = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    except ImportError:
        packed = Path("/nonexistent")
    return shutil.which("cuobjdump") or (str(packed) if packed.exists() else None)


def _instructions(cubin: Path) -> dict[str, dict[str, int]]:
    """How often each instruction stands in each function."""
    tool = _cuobjdump()
    assert tool is not None
    # It calls nvdisasm, which lies beside it.
    path = os.pathsep.join((str(Path(tool).parent), os.environ["PATH"]))
    text = subprocess.run(
        [tool, "-sass", str(cubin)], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    ).stdout
    functions = re.split(r"^\s*Function : (\w+)$", text, flags=re.MULTILINE)
    return {
        name: dict(Counter(_INSTRUCTION.findall(body)))
        for name, body in zip(functions[1::2], functions[2::2], strict=True)
    }


def main() -> None:
    """Print a table for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("archs", nargs="*", default=ARCHS, help="as nvcc writes them after sm_")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(f"tools.cuda_figures: {reason}")
    with ThreadPoolExecutor(given.jobs) as pool:
        asked = [(source, arch) for arch in given.archs for source in sources()]
        rows = [row for found in pool.map(lambda pair: figures(*pair), asked) for row in found]
    for row in rows:
        units = {k: v for k, v in row["instructions"].items() if re.match(r"[HQU]?[A-Z]*MMA|LDSM|LDGSTS|UTMA", k)}
        print(
            f"{row['arch']:<8} {row['registers']:>3} registers {row['spills']:>4} spilled  {row['kernel']}\n"
            f"         {' '.join(f'{name}:{count}' for name, count in sorted(units.items()))}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
