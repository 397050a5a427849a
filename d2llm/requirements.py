"""What this package needs of others, by its own metadata: names, versions, extras."""

import importlib.metadata
import importlib.util

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "d2llm"
#: Names of packages that are imported under another one.
_PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml"}


def needed(extra: str = "") -> list[Requirement]:
    """What the package, or one of its extras, asks for on this machine; nothing where it is not installed."""
    try:
        found = [Requirement(line) for line in importlib.metadata.requires(NAME) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    asked = [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [each for each in asked if not extra or each not in needed()]


def extras() -> list[str]:
    """Names of the extras; none where the package is not installed."""
    try:
        return importlib.metadata.metadata(NAME).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def to_install(requirement: Requirement, extra: str = "") -> str:
    """The command that brings a requirement."""
    what = f"{NAME}[{extra}]" if extra else f"{requirement.name}{requirement.specifier}"
    return f'pip install --upgrade "{what}"'


def missing(module: str) -> str | None:
    """What to say of a module that is not there; None for one that this package never asked for."""
    package = canonicalize_name(_PACKAGES.get(module, module))
    for extra in ("", *extras()):
        for each in needed(extra):
            if canonicalize_name(each.name) == package:
                return f"{each.name} is not installed and needed here; try: {to_install(each, extra)}"
    return None


def require(module: str, extra: str) -> None:
    """Make sure that what an extra brings is there, before something is imported that needs it.

    Raises:
        ModuleNotFoundError: saying how to install it.
    """
    if importlib.util.find_spec(module) is None:
        advice = f'pip install --upgrade "{NAME}[{extra}]"'
        raise ModuleNotFoundError(f"{module} is not installed and needed here; try: {advice}", name=module)
