"""Adds the C++ kernels of ``csrc/cpu`` where torch and GCC are there, and the CUDA kernels of ``csrc/cuda`` where torch
has CUDA and nvcc is there too; all else is declared in pyproject.toml.

``D2LLM_KERNELS_BUILD``: ``auto`` builds what can be built, says nothing where it cannot, and one line where it does not
compile; ``cpu`` and ``cuda`` insist on the one and leave out the other, ``none`` builds nothing. What ``auto`` builds
beside the sources leaves out AVX-512 where the CPU has none, nearly half of the time; a wheel has everything.
``D2LLM_KERNELS_FLAGS`` are added to the C++ compiler's, ``TORCH_CUDA_ARCH_LIST`` names the GPUs to compile for,
``CUDA_HOME`` the toolkit, which is that of the nvcc on PATH otherwise.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.errors import CompileError, LinkError

# Torch would take c++ and setuptools the compiler of Python itself: one for all.
os.environ["CXX"] = os.environ.get("CXX") or "g++"

CPU, CUDA = "d2llm_kernels._cpu", "d2llm_kernels._cuda"
CHOICES = ("auto", "cpu", "cuda", "none")
FLAGS = [
    "-O3",
    "-g0",
    "-fopenmp",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    *os.environ.get("D2LLM_KERNELS_FLAGS", "").split(),
]
# Code for Ampere runs on every GPU since, and what is newer than all of these compiles its PTX.
ARCHITECTURES = "8.0+PTX;9.0a;10.0a;12.0a"


def _compiler() -> str | None:
    """First line of the version of the C++ compiler, or None where it is not GCC."""
    command = shlex.split(os.environ["CXX"])
    if not shutil.which(command[0]):
        return None
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    # The kernels use GCC's vector extensions; clang lacks some.
    return shown.splitlines()[0] if "Free Software Foundation" in shown else None


def _obstacle() -> str | None:
    """Why the C++ kernels cannot be built here, or None."""
    if platform.system() != "Linux":
        return f"they are built on Linux only, this is {platform.system()}"
    if _compiler() is None:
        return f"CXX: expected the command of a g++, got {os.environ['CXX']!r}, which is none or is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "the headers of Python are not installed (Python.h; python3-dev on Debian)"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch cannot be imported; install it first and pass --no-build-isolation to pip"
    return None


def _toolkit() -> str | None:
    """Folder of the CUDA toolkit, by the word of the nvcc on PATH: it may be a wrapper that lies in another folder."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # It says where it lives before it looks for its input. CMake asks it in the same way.
    said = subprocess.run([nvcc, "-v", "__no_input"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    return str(Path(top[1].strip()).resolve()) if top else None


def _no_cuda() -> str | None:
    """Why the CUDA kernels cannot be built here, or None."""
    obstacle = _obstacle()
    if obstacle is not None:
        return obstacle
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if CUDA_HOME is None:
        return "there is no nvcc; install the CUDA toolkit or set CUDA_HOME"
    shown = subprocess.run([f"{CUDA_HOME}/bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", shown)
    if release and release[1] != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {release[1]}, torch {torch.__version__} is built with CUDA {torch.version.cuda}"
    return None


def _architectures() -> str:
    """TORCH_CUDA_ARCH_LIST, by default the GPU that is here, else all that are known."""
    import torch

    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed
    if not torch.cuda.is_available():
        return ARCHITECTURES
    major, minor = torch.cuda.get_device_capability()
    # What the letter adds, such as wgmma, is only had by asking for it.
    return f"{major}.{minor}" + ("a" if major >= 9 else "")


def _without_avx512(asked: str) -> bool:
    """Whether the kernels are for this machine alone, which cannot run AVX-512."""
    facts = Path("/proc/cpuinfo")
    here = asked == "auto" and "--inplace" in sys.argv and facts.exists()
    return here and "avx512f" not in facts.read_text(encoding="ascii", errors="replace")


def _cpu_extension(asked: str) -> Any:
    import torch
    from torch.utils.cpp_extension import CppExtension

    defines = {"TORCH_VERSION": torch.__version__, "COMPILER": _compiler(), "FLAGS": " ".join(FLAGS)}
    less = [("D2LLM_WITHOUT_AVX512", "")] if _without_avx512(asked) else []
    return CppExtension(
        CPU,
        _files("csrc/cpu", "**/*.cpp"),
        depends=_files("csrc/cpu", "**/*.h"),
        define_macros=_macros(defines) + less,
        extra_compile_args=FLAGS,
        # OpenMP comes from torch's own copy: a second runtime would have threads of its own.
        extra_link_args=[flag for flag in FLAGS if flag != "-fopenmp"],
    )


def _cuda_extension() -> Any:
    import torch
    from torch.utils.cpp_extension import CUDAExtension

    os.environ["TORCH_CUDA_ARCH_LIST"] = _architectures()
    defines = {"TORCH_VERSION": torch.__version__, "COMPILER": f"nvcc {torch.version.cuda}"}
    defines["ARCHITECTURES"] = os.environ["TORCH_CUDA_ARCH_LIST"]
    return CUDAExtension(
        CUDA,
        _files("csrc/cuda", "**/*.cu") + _files("csrc/cuda", "*.cpp"),
        depends=_files("csrc/cuda", "**/*.cuh") + _files("csrc/cuda", "**/*.h"),
        include_dirs=[os.path.abspath("csrc/cuda")],
        define_macros=_macros(defines),
        extra_compile_args={"cxx": ["-O2", "-g0"], "nvcc": ["-O3", "-lineinfo"]},
    )


def _files(folder: str, pattern: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob(pattern))


def _macros(defines: dict[str, str | None]) -> list[tuple[str, str]]:
    return [(f"D2LLM_{name}", f'"{value}"') for name, value in defines.items()]


def _arguments(extensions: list[Any], optional: bool) -> dict[str, Any]:
    from torch.utils.cpp_extension import BuildExtension, is_ninja_available

    class Build(BuildExtension):
        def run(self) -> None:
            # An older library must not pass for the result; where there is none, ninja says what to compile again.
            for extension in self.extensions:
                place = Path(self.build_lib, self.get_ext_filename(extension.name))
                for path in (self.get_ext_fullpath(extension.name), place):
                    Path(path).unlink(missing_ok=True)
            super().run()

        def build_extension(self, extension: Any) -> None:
            kind = "CUDA" if extension.name == CUDA else "C++"
            print(f"Compiling the {kind} kernels, a minute or two", file=sys.stderr)
            try:
                super().build_extension(extension)
            except (CompileError, LinkError, RuntimeError) as error:
                if not optional:
                    raise CompileError(str(error)) from error
                self.left_out.append(extension)
                reason = f"did not compile ({error}".partition("\n")[0]
                advice = f"D2LLM_KERNELS_BUILD={extension.name.partition('._')[2]} shows why"
                print(f"d2llm: the {kind} kernels are left out, they {reason}); {advice}", file=sys.stderr)

        def build_extensions(self) -> None:
            self.left_out: list[Any] = []
            super().build_extensions()
            self.extensions = [extension for extension in self.extensions if extension not in self.left_out]

    return {"ext_modules": extensions, "cmdclass": {"build_ext": Build.with_options(use_ninja=is_ninja_available())}}


def kernels() -> dict[str, Any]:
    """What ``D2LLM_KERNELS_BUILD`` asks for, as arguments of ``setup``."""
    asked = os.environ.get("D2LLM_KERNELS_BUILD") or "auto"
    if asked not in CHOICES:
        raise SystemExit(f"D2LLM_KERNELS_BUILD: expected one of {CHOICES}, got {asked!r}")
    if asked == "none":
        return {}
    if asked != "cpu" and not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")) and (found := _toolkit()):
        # Read when torch's extension module is imported; torch would take the folder above nvcc's own.
        os.environ["CUDA_HOME"] = found
    insisted = {"cpu": _obstacle, "cuda": _no_cuda}.get(asked)
    obstacle = insisted() if insisted else None
    if obstacle is not None:
        names = {"cpu": "C++", "cuda": "CUDA"}
        raise SystemExit(f"D2LLM_KERNELS_BUILD={asked}: the {names[asked]} kernels cannot be built: {obstacle}")
    extensions = []
    if asked != "cuda" and _obstacle() is None:
        extensions.append(_cpu_extension(asked))
    if asked != "cpu" and _no_cuda() is None:
        extensions.append(_cuda_extension())
    return _arguments(extensions, optional=asked == "auto") if extensions else {}


setup(**kernels())
