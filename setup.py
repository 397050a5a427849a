"""Adds the C++ kernels of ``csrc/cpu`` where torch and GCC are there; all else is declared in pyproject.toml.

``D2LLM_KERNELS_BUILD``: ``auto`` builds what can be built, says nothing where it cannot, and one line where it does not
compile; ``cpu`` insists, ``none`` builds nothing. ``D2LLM_KERNELS_FLAGS`` are added to the compiler's.
"""

import os
import platform
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

NAME = "d2llm_kernels._cpu"
CHOICES = ("auto", "cpu", "cuda", "none")
FLAGS = [
    "-O3",
    "-g0",
    "-fopenmp",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    *os.environ.get("D2LLM_KERNELS_FLAGS", "").split(),
]


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


def _extension(optional: bool) -> dict[str, Any]:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    class Build(BuildExtension):
        def run(self) -> None:
            # An older library must not pass for the result; where there is none, ninja says what to compile again.
            for path in (self.get_ext_fullpath(NAME), Path(self.build_lib, self.get_ext_filename(NAME))):
                Path(path).unlink(missing_ok=True)
            super().run()

        def build_extensions(self) -> None:
            print("Compiling the C++ kernels, a minute or two", file=sys.stderr)
            try:
                super().build_extensions()
            except (CompileError, LinkError, RuntimeError) as error:
                if not optional:
                    raise CompileError(str(error)) from error
                self.extensions.clear()
                reason = f"did not compile ({error}".partition("\n")[0]
                advice = "D2LLM_KERNELS_BUILD=cpu shows why"
                print(f"d2llm: the C++ kernels are left out, they {reason}); {advice}", file=sys.stderr)

    defines = {"TORCH_VERSION": torch.__version__, "COMPILER": _compiler(), "FLAGS": " ".join(FLAGS)}
    extension = CppExtension(
        NAME,
        sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc/cpu").glob("*.h")),
        define_macros=[(f"D2LLM_{name}", f'"{value}"') for name, value in defines.items()],
        extra_compile_args=FLAGS,
        # OpenMP comes from torch's own copy: a second runtime would have threads of its own.
        extra_link_args=[flag for flag in FLAGS if flag != "-fopenmp"],
    )
    options = {"use_ninja": is_ninja_available()}
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(**options)}}


def kernels() -> dict[str, Any]:
    """What ``D2LLM_KERNELS_BUILD`` asks for, as arguments of ``setup``."""
    asked = os.environ.get("D2LLM_KERNELS_BUILD") or "auto"
    if asked not in CHOICES:
        raise SystemExit(f"D2LLM_KERNELS_BUILD: expected one of {CHOICES}, got {asked!r}")
    if asked == "cuda":
        raise SystemExit("D2LLM_KERNELS_BUILD: there are no CUDA kernels to build yet; expected auto, cpu or none")
    if asked == "none":
        return {}
    obstacle = _obstacle()
    if obstacle is None:
        return _extension(optional=asked == "auto")
    if asked == "cpu":
        raise SystemExit(f"D2LLM_KERNELS_BUILD=cpu: the C++ kernels cannot be built: {obstacle}")
    return {}


setup(**kernels())
