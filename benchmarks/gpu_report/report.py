"""Takes the steps of a plan one after the other, and leaves whole files behind whatever becomes of them."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu_report import build, children, writing
from benchmarks.gpu_report.plan import Plan, Step
from benchmarks.gpu_report.state import DONE, DROPPED, FAILED, Steps, Values
from d2llm_kernels.measure import machine
from d2llm_kernels.measure.timing import Timer

# After its time a call waits this long for the step in hand.
_GRACE_S = 20.0
# Less than this is not worth another start.
_RESTART_S = 45.0


class Report:
    """A call of the program.

    Args:
        values: what there is already; filled further.
        plan: what is to be done.
        start_again: starts the program anew, with so many minutes, in place of this one.
    """

    def __init__(
        self, values: Values, timer: Timer, folder: Path, plan: Plan, start_again: Callable[[float], None]
    ) -> None:
        self.values, self.timer, self.folder, self.plan = values, timer, folder, plan
        self._steps, self._start_again = Steps(values["steps"]), start_again
        self._start, self._before = time.monotonic(), values["seconds"]

    def run(self, stage: int | None) -> None:
        """Take every step that is not done yet and that there is time for."""
        build.use(self.folder)
        self._take(self.plan.groundwork())
        self.values["machine"] = machine.facts(self.timer.device)
        # What came to nothing before must not stand before what was never tried.
        self._take(sorted(self.plan.steps(stage), key=lambda step: self._steps.tries(step.name)))
        self.write()

    def write(self) -> None:
        """Write the files as far as they are."""
        if self.values["machine"] is None:
            # Asked before the build, it would load a library, and a process loads one once.
            return
        self.values["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        self.values["seconds"] = self._before + time.monotonic() - self._start
        writing.write(self.values, self.folder)

    def _take(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if self._steps.done(step.name):
                continue
            if self.plan.left < step.seconds:
                self._steps.note(step.name, DROPPED)
                continue
            print(f"[{time.monotonic() - self._start:5.0f} s] {step.name}", flush=True)
            self._steps.begin(step.name)
            self.write()
            with self._watched(step):
                try:
                    step.run()
                    self._steps.note(step.name, DONE)
                except Exception as error:
                    self._steps.note(step.name, FAILED, f"{type(error).__name__}: {error}"[:2000])
                lost = self._lost()
            if lost:
                self._steps.note(step.name, FAILED, f"the GPU answers no more ({lost})")
                self._go_on()
                return
            self.write()

    @contextmanager
    def _watched(self, step: Step) -> Iterator[None]:
        """Give up a step that does not come back, as one does not whose kernel hangs."""
        seconds = min(step.limit, max(0.0, self.plan.left)) + _GRACE_S

        def give_up() -> None:
            self._steps.note(step.name, FAILED, f"it did not come back in {seconds:.0f} s")
            self._go_on()

        watchdog = threading.Timer(seconds, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _go_on(self) -> None:
        """In a new process: this one's hold on the GPU is of no more use."""
        self.write()
        children.end()
        self._start_again(self.plan.left / 60 if self.plan.left > _RESTART_S else 0.0)

    def _lost(self) -> str | None:
        """Why the GPU cannot be used any more after a failed kernel, or None."""
        try:
            self.timer.free()
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None
