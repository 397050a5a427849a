"""Every Triton kernel with every row of the table, compiled for GPUs that are not here, and what becomes of it.

A kernel takes seconds to compile: ``make test`` compiles each once a number type for one GPU, ``make test-rest`` once
in a number type for two others and by an older Triton, with the largest tiles; all rows wait for ``make test-full``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "d2llm_kernels/backends/triton/table.json").read_text())
# Which number types of each kernel are compiled once: of each maker the oldest GPU that has its matrix instructions
# here besides. What comes between and behind waits.
ONCE = {"sm_90": (), "sm_80": ("--case", "float32"), "gfx942": ("--case", "bfloat16")}
RELATIVES = ("sm_89", "sm_100", "sm_120")
# Shared memory of a block in bytes: NVIDIA's CUDA programming guide, AMD's CDNA 3 guide.
SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10}
MATRIX = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
# These sum along rows and multiply no matrices.
WITHOUT_MATRIX = ("pool_softmax", "in_batch_forward", "in_batch_backward")
# Kernels whose tiles are too low for the widest instruction take the one of the generation before.
NARROW = ("pool_forward", "pool_products", "pool_gradients")
# The table's names of what two kernels do besides.
WITH_FEATURES = {"features", "slopes_features"}
# Beside the installed Triton the oldest that its interpreter-free use is held to; `make` puts it here.
OLDER = Path(sys.prefix) / "triton-3.6"


def figures(arch: str, folder: Path, *options: str, older: Path | None = None) -> list[dict]:
    out = folder / "figures.json"
    path = os.pathsep.join(map(str, filter(None, (older, ROOT))))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    command = [sys.executable, "tools/cross_compile.py", "--arch", arch, "--json", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads(out.read_text())["rows"]


def check(arch: str, rows: list[dict]) -> None:
    for row in rows:
        name = row["kernel"].removesuffix("_kernel")
        label = f"{arch} {name} {row['case']} {row['tiles']}"
        assert row["spills"] == 0, f"{label}: {row['spills']} spilled"
        assert row["shared"] <= SHARED.get(arch, 64 << 10), f"{label}: {row['shared']} bytes of shared memory"
        assert 0 < row["registers"] <= (512 if arch == "gfx942" else 255), label
        if name in WITHOUT_MATRIX:
            continue
        wanted = MATRIX.get(arch, "mma.sync")
        found = any(instruction.startswith(wanted) for instruction in row["matrix"])
        narrow = name in NARROW and any(instruction.startswith("mma.sync") for instruction in row["matrix"])
        assert found or narrow, f"{label}: {row['matrix']}"
        check_float32_sums(arch, row, label)


def check_float32_sums(arch: str, row: dict, label: str) -> None:
    """Matrix units cut sums off: of float32 the three products of a block begin at zero, and their sum is added."""
    if arch.startswith("sm_") and row["case"].startswith("float32"):
        assert row["products"] == 3 * row["from_zero"] > 0, f"{label}: {row['products']}, {row['from_zero']} from zero"


@pytest.mark.parametrize(
    "arch", ("sm_90", *(pytest.param(arch, marks=pytest.mark.rest) for arch in ("sm_80", "gfx942")))
)
def test_every_kernel_fits(arch, tmp_path):
    rows = figures(arch, tmp_path, "--once", *ONCE[arch])
    check(arch, rows)
    assert {row["kernel"].removesuffix("_kernel") for row in rows} == {row["kernel"] for row in TABLE} - WITH_FEATURES


@pytest.mark.full
@pytest.mark.parametrize("arch", (*ONCE, *RELATIVES))
def test_no_spills_enough_shared_memory_and_matrix_instructions(arch, tmp_path):
    rows = figures(arch, tmp_path)
    check(arch, rows)
    compiled = [row["tiles"] for row in rows]
    for row in TABLE:
        if arch in row["archs"]:
            # A block wider than the width itself is cut to it, so some tiles of a row may come out smaller.
            wanted = {k: v for k, v in row["tiles"].items() if k not in ("SLICE", "BLOCK_D", "BLOCK_N")}
            assert any(wanted.items() <= tiles.items() for tiles in compiled), f"never compiled: {row}"


@pytest.mark.skipif(not OLDER.exists(), reason="no older Triton beside the installed one")
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        pytest.param("sm_90", ("--once", "--case", "float32"), marks=pytest.mark.rest),
        *(pytest.param(arch, (), marks=pytest.mark.full) for arch in ONCE),
    ],
    ids=lambda value: value if isinstance(value, str) else "once" if value else "all",
)
def test_the_oldest_triton_compiles_them_too(arch, options, tmp_path):
    for row in figures(arch, tmp_path, *options, older=OLDER):
        assert "error" not in row and row["shared"] <= SHARED.get(arch, 64 << 10), row
        if row["kernel"].removesuffix("_kernel") not in WITHOUT_MATRIX:
            check_float32_sums(arch, row, str(row))
