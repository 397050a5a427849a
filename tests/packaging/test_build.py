"""What setup.py builds, what it leaves out, and what it says about it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

from tests.fake_toolkit import Toolkit

ROOT = Path(__file__).parents[2]
HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
needs_gcc = pytest.mark.skipif(not (shutil.which("g++") and HEADERS), reason="no g++ or no headers of Python")


def setup(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(
    "choice,message",
    [
        ("gpu", "D2LLM_KERNELS_BUILD: expected one of ('auto', 'cpu', 'cuda', 'none'), got 'gpu'"),
        ("cuda", "the CUDA kernels cannot be built: CXX: expected the command of a g++, got '/nonexistent -O2'"),
        ("cpu", "CXX: expected the command of a g++, got '/nonexistent -O2', which is none or is not installed"),
    ],
)
def test_what_cannot_be_built_is_said(choice, message):
    done = setup("--version", D2LLM_KERNELS_BUILD=choice, CXX="/nonexistent -O2")
    assert done.returncode == 1 and message in done.stderr


@needs_gcc
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_cuda_kernels_need_a_torch_with_cuda():
    done = setup("--version", D2LLM_KERNELS_BUILD="cuda")
    assert done.returncode == 1 and f"torch {torch.__version__} is built without CUDA" in done.stderr


@needs_gcc
def test_without_torch_cpu_says_how_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    done = setup("--version", D2LLM_KERNELS_BUILD="cpu", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "pass --no-build-isolation to pip" in done.stderr


@pytest.mark.parametrize("choice", ("auto", "none", ""))
def test_without_a_compiler_nothing_is_built_and_nothing_said(choice, tmp_path):
    done = setup("build_ext", "--build-lib", str(tmp_path), D2LLM_KERNELS_BUILD=choice, CXX="/nonexistent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@needs_gcc
@pytest.mark.parametrize("choice,place", [("auto", "--inplace"), ("cpu", "--inplace"), ("auto", "--build-lib=built")])
def test_what_this_cpu_lacks_is_spared_where_the_kernels_stay(choice, place, tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "d2llm_kernels").mkdir()
    compiler, called = tmp_path / "g++", tmp_path / "called"
    compiler.write_text(f'#!/bin/sh\ncase $1 in --version | -dump*) exec g++ $1;; esac\necho "$@" >>{called}\nexit 1\n')
    compiler.chmod(0o755)
    setup("build_ext", place, cwd=tmp_path, D2LLM_KERNELS_BUILD=choice, CXX=str(compiler))
    spared = (choice, place) == ("auto", "--inplace") and "avx512f" not in Path("/proc/cpuinfo").read_text()
    assert ("-DD2LLM_WITHOUT_AVX512" in called.read_text()) == spared


@needs_gcc
@pytest.mark.parametrize("choice", ("auto", "cpu"))
def test_kernels_that_do_not_compile(choice, tmp_path):
    arguments = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path / "temp"))
    library = tmp_path / f"d2llm_kernels/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    library.parent.mkdir()
    library.write_text("of an earlier build")
    done = setup(*arguments, D2LLM_KERNELS_BUILD=choice, D2LLM_KERNELS_FLAGS="--no-such-flag")
    lines = done.stderr.splitlines()
    assert not library.exists()
    if choice == "auto":
        # A torch with CUDA has a line of its own before them where there is no GPU.
        assert done.returncode == 0 and len(lines) in (2, 3), done.stderr
        assert lines[-2].startswith("Compiling the C++ kernels")
        assert "the C++ kernels are left out, they did not compile" in lines[-1]
    else:
        assert done.returncode == 1 and "--no-such-flag" in done.stdout


def test_the_source_distribution_holds_what_the_kernels_are_built_from(tmp_path):
    done = setup(
        "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path), D2LLM_KERNELS_BUILD="none"
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    assert sources | {"setup.py", "d2llm_kernels/py.typed", "d2llm_kernels/backends/triton/table.json"} <= names


def test_what_the_wheel_carries_beside_code_stays_small():
    assets = [path for path in (ROOT / "d2llm/assets").rglob("*") if path.is_file()]
    assert assets and sum(path.stat().st_size for path in assets) <= 12_000_000


@pytest.mark.skipif(not HEADERS, reason="no headers of Python")
def test_a_toolkit_of_another_cuda_than_torchs_is_left_alone(tmp_path):
    done = setup("build_ext", D2LLM_KERNELS_BUILD="cuda", **Toolkit(tmp_path, release="12.8").environment)
    assert done.returncode == 1 and "cannot be built: nvcc is of CUDA 12, torch" in done.stderr


@pytest.mark.skipif(not HEADERS, reason="no headers of Python")
def test_the_toolkit_is_nvccs_own_and_not_the_folder_of_its_wrapper(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    toolkit = Toolkit(tmp_path)
    build = ("build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    done = setup(*build, D2LLM_KERNELS_BUILD="cuda", **toolkit.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "lib/d2llm_kernels").glob("_cuda*"))) == 1
    (ninja,) = (tmp_path / "temp").rglob("build.ninja")
    assert f"nvcc = {toolkit.home}/bin/nvcc" in ninja.read_text()
    compiled = [line for line in toolkit.log.read_text().splitlines() if " -c " in f" {line} "]
    assert len(compiled) == len(list((ROOT / "csrc/cuda").rglob("*.cu")))
    # The kernels look for platform.cuh there, since the emulation has one of its own.
    assert all(f"-I{ROOT / 'csrc/cuda'} " in line for line in compiled)
