"""How the GPU report goes from step to step: what hangs is given up, what failed waits for the rest."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.gpu_report import report as module
from benchmarks.gpu_report.children import ROOT
from benchmarks.gpu_report.plan import Step
from benchmarks.gpu_report.report import Report
from benchmarks.gpu_report.state import load
from d2llm_kernels.measure.timing import Timer

# Not to be had where the report is to run.
ABSENT = ("gguf",)


class Plan:
    def __init__(self, steps, seconds=600.0):
        self._steps, self.deadline = steps, time.monotonic() + seconds

    @property
    def left(self):
        return self.deadline - time.monotonic()

    def groundwork(self):
        return []

    def steps(self, stage):
        return self._steps


def report(folder, steps, start_again=pytest.fail, **options):
    values = load(folder, Timer.device.type, smoke=True, again=False)
    return Report(values, Timer(), folder, Plan(steps, **options), start_again)


def step(name, run, **options):
    return Step(name, run, 1, 0, 0, **options)


def notes(folder):
    return json.loads((folder / "report.json").read_text())["steps"]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    facts = {"device": Timer.device.type, "backends": {}, "versions": {}, "architecture": "", "python": ""}
    monkeypatch.setattr(module.machine, "facts", lambda device: facts | {"revision": "", "dirty": False})


def test_a_step_that_hangs_is_given_up_and_a_new_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_GRACE_S", 0.0)
    released, minutes = threading.Event(), []

    def start_again(left):
        minutes.append(left)
        # A process that is replaced gets no further; here the note of its end is what stays of it.
        noted.update(notes(tmp_path)["hangs"])
        released.set()

    noted = {}
    report(tmp_path, [step("hangs", released.wait, limit=0.2)], start_again).run(None)
    assert 9 < minutes[0] < 10
    assert noted["outcome"] == "failed" and noted["tries"] == 1 and noted["why"].startswith("it did not come back")


def test_what_failed_comes_after_what_was_never_tried_and_is_not_tried_a_third_time(tmp_path):
    order = []

    def fails():
        order.append("fails")
        raise ValueError("no such luck")

    for name in ("first", "second", "third"):
        report(tmp_path, [step("fails", fails), step(name, lambda name=name: order.append(name))]).run(None)
    assert order == ["fails", "first", "second", "fails", "third"]
    assert notes(tmp_path)["fails"]["why"] == "ValueError: no such luck"
    assert "Could not run" in (tmp_path / "report.md").read_text()


def test_a_report_of_another_device_is_not_gone_on_with(tmp_path):
    report(tmp_path, [step("done", lambda: None)]).run(None)
    assert "done" in load(tmp_path, Timer.device.type, smoke=True, again=False)["steps"]
    assert not load(tmp_path, "another", smoke=True, again=False)["steps"]
    assert not load(tmp_path, Timer.device.type, smoke=True, again=True)["steps"]


# It imports everything once more, and concerns a machine that has a GPU and little else.
@pytest.mark.rest
def test_the_report_and_its_tests_ask_for_nothing_that_may_be_missing():
    code = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})
import pytest
import benchmarks.gpu_report.__main__
from benchmarks.gpu_report import end_to_end
from d2llm_kernels.measure.timing import Timer
from tests.gpu.interpreter import patch_once_a_module
patch_once_a_module()
assert len(end_to_end.measure(Timer(fewest=1, most=1), end_to_end.SMOKE)) == 2
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/gpu"]))
"""
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ".", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
