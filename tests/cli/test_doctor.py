"""The doctor sees what is wrong, says what to do, and its list of packages is that of the project."""

import re
from pathlib import Path

import pytest

import d2llm.doctor as doctor
from d2llm.doctor import OPTIONAL, REQUIRED, cache_check, disk_check, package_check, run_checks
from tests.cli.conftest import Run

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_nothing_is_broken_here(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert re.search(r"ok +kernels +agree with the reference", result.output)
    assert "chosen by 'auto'" in result.output


def test_every_warning_says_what_to_do() -> None:
    assert all(check.advice for check in run_checks() if check.status != "ok")


def test_an_error_sets_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIRED, "no-such-package", "1")
    result = run("doctor")
    assert result.exit_code == 1 and 'pip install "no-such-package>=1"' in result.output


def test_an_old_package_is_an_error() -> None:
    check = package_check("numpy", "999")
    assert check.status == "error" and "needs 999" in check.detail and "--upgrade" in check.advice


def test_an_unknown_backend_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2LLM_KERNELS_BACKEND", "abacus")
    result = run("doctor")
    assert result.exit_code == 1 and "abacus" in result.output and "unset D2LLM_KERNELS_BACKEND" in result.output


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_check(tmp_path / "not" / "yet").status == "ok"
    assert not (tmp_path / "not").exists()
    # The kernel's own files refuse even root.
    check = cache_check(Path("/proc/self/d2llm"))
    assert check.status == "error" and "D2LLM_CACHE" in check.advice


def test_little_space_is_a_warning_and_none_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_check(tmp_path).detail.endswith(f"GB free at {tmp_path}")
    for free, status in ((1 << 30, "warn"), (1 << 20, "error")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert disk_check(tmp_path).status == status


def test_packages_are_those_of_the_project() -> None:
    listed = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)",$', PROJECT.split("[project.optional-dependencies]")[0], re.M))
    assert listed == REQUIRED
    for package, _, extra in OPTIONAL:
        assert re.search(rf'^{extra} = \[.*"{package}', PROJECT, re.M), package
