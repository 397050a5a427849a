"""Every CUDA kernel, compiled for GPUs that are not here: what the compiler says, which instructions it chose."""

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from tools import cuda_figures

pytestmark = pytest.mark.skipif(cuda_figures.missing() is not None, reason=str(cuda_figures.missing()))

# Sums along rows of scores: no matrices, nothing worth staging.
PLAIN = ("pool_softmax_kernel",)
FIRST = ("cuda-iem_scores", "hopper-pool_forward")
MATRIX = {"bf16": "HMMA.16816.F32.BF16", "fp16": "HMMA.16816.F32", "float": "HMMA.1688.F32.TF32"}


def portable(row: dict) -> None:
    """Products on matrix units, operands by ldmatrix from what 16-byte asynchronous copies brought."""
    label, found = f"{row['arch']} {row['kernel']}", row["instructions"]
    element = row["kernel"].partition("<")[2].partition(",")[0]
    # Shared memory is given at the launch: tests/gpu/test_emulation.py holds it to what every GPU has.
    assert 0 < row["registers"] <= 255 and row["shared"] == 0, label
    if not row["kernel"].startswith(PLAIN):
        assert MATRIX[element] in found, f"{label}: {found}"
        # float32 that lies across the rows is loaded word by word.
        if not row["kernel"].startswith("iem_weights_kernel<float"):
            assert any(name.startswith("LDSM.16.M") for name in found), label
        assert any(name.startswith("LDGSTS.E.BYPASS.128") for name in found), label


def hopper(row: dict) -> None:
    """Asynchronous products, or those of every GPU where memory is the limit, on what the copy engine brought."""
    label, found = f"{row['arch']} {row['kernel']}", row["instructions"]
    product = "HMMA" if "pool_forward" in row["kernel"] else "QGMMA" if "Fp8" in row["kernel"] else "HGMMA"
    for wanted in (product, "UTMALDG"):
        assert any(name.startswith(wanted) for name in found), f"{label}: no {wanted} in {found}"
    assert row["shared"] == 0, label


def kernels() -> Iterator[object]:
    """Every file for every architecture; but for the oldest, or Hopper's own, without float16, all are ``full``.

    Of those, a file of each kind is compiled by ``make test``: the compiler takes seconds for every one.
    """
    for source in cuda_figures.sources():
        first = "90a" if source.parent.name == "hopper" else "80"
        label = f"{source.parent.name}-{source.stem}"
        marks = () if label in FIRST else pytest.mark.rest
        yield pytest.param(source, first, False, marks=marks, id=f"{label}-{first}-some")
        for arch in cuda_figures.ARCHS:
            yield pytest.param(source, arch, True, marks=pytest.mark.full, id=f"{label}-{arch}")


@pytest.mark.parametrize("source,arch,float16", list(kernels()))
def test_no_spills_and_the_instructions_that_are_meant(source, arch, float16):
    rows = cuda_figures.figures(source, arch, float16)
    assert rows
    for row in rows:
        label = f"{row['arch']} {row['kernel']}"
        assert row["spills"] == 0 and row["stack"] == 0, f"{label}: {row['spills']} bytes spilled, {row['stack']} stack"
        assert not any(name.startswith(("LDL", "STL")) for name in row["instructions"]), label
        if source.parent.name != "hopper":
            portable(row)
        elif arch == "90a":
            hopper(row)


def toolkit() -> Path:
    """The headers of CUDA."""
    beside = Path(shutil.which("nvcc") or "").resolve().parents[1] / "include"
    return beside if (beside / "cuda_runtime_api.h").exists() else Path("/usr/local/cuda/include")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_what_is_known_of_a_device_is_asked_once_for_each(tmp_path):
    program, source = tmp_path / "two_devices", Path(__file__).with_name("two_devices.cpp")
    command = ["g++", "-std=c++20", f"-I{cuda_figures.CUDA}", f"-I{toolkit()}", str(source), "-o", str(program)]
    for step in (command, [str(program)]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.rest
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_binding_compiles_against_the_headers_of_cuda(tmp_path):
    # What a torch with CUDA generates when it is built.
    generated = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"
    generated.parent.mkdir(parents=True)
    generated.write_text("#pragma once\n")
    paths = [tmp_path, *include_paths(), toolkit(), sysconfig.get_path("include")]
    command = ["g++", "-std=c++20", "-fsyntax-only", *(f"-I{path}" for path in paths)]
    done = subprocess.run([*command, str(cuda_figures.CUDA / "binding.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
