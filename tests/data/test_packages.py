"""Packages fetched as text: unpacked once, and what cannot be had is named."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from d2llm.data import packages
from d2llm.data.docstrings import functions


def _pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a pip in its place that knows one package; the list is of what it was asked for."""
    asked: list[str] = []

    def run(command: list[str], **_: object) -> None:
        asked.append(command[-1])
        assert "--no-deps" in command and "--only-binary=:all:" in command
        if command[-1] != "known==1.0":
            raise subprocess.CalledProcessError(1, command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "known-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("known/core.py", 'def f(x):\n    """Give the thing back again."""\n    return x\n')
            wheel.writestr("known/_fast.so", "binary")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return asked


def test_a_package_is_fetched_once_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _pip(monkeypatch)
    for _ in range(2):
        folders, absent = packages.fetch_packages(["known==1.0", "absent==2.0"], tmp_path / "packages")
        assert absent == ["absent==2.0"] and [folder.name for folder in folders] == ["known==1.0"]
        assert [file.name for file in folders[0].rglob("*") if file.is_file()] == ["core.py"]
        assert [function.name for function in functions(folders[0])] == ["known.core.f"]
    assert asked == ["known==1.0", "absent==2.0", "absent==2.0"]
