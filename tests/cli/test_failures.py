"""Expected failures end in one message and an exit code; faults keep their traceback."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

from d2llm.cli.failures import GuardedGroup, explain
from d2llm.errors import InputError
from d2llm.student import D2LLM
from d2llm.training.run import last_checkpoint
from d2llm_kernels import BackendError
from tests.cli.conftest import Run


def failing(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=GuardedGroup)

    @app.callback()
    def root() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    "error, message",
    [
        (InputError("k: expected at least 1, got 0"), "error: k: expected at least 1, got 0"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: [Errno 13] Permission denied: '/x'"),
        (BackendError("backend='triton': not here"), "error: backend='triton': not here"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_mendable_failures_exit_with_2_and_a_line(error: Exception, message: str) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_disk_full_is_seen_through_another_error() -> None:
    try:
        raise RuntimeError("cannot write") from OSError(errno.ENOSPC, "No space left on device")
    except RuntimeError as error:
        assert "disk is full" in str(explain(error))


def test_a_fault_is_not_dressed_up() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("division by zero")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_interrupt_says_what_to_do() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130 and "run the same command to go on" in result.stderr


def test_help_does_not_wait_for_torch(command: Callable[..., "subprocess.Popen[str]"]) -> None:
    assert "d2llm mine pairs.jsonl" in command("--help").communicate(timeout=60)[0]
    heavy = "import sys, d2llm.cli; print(sorted({'torch', 'transformers', 'scipy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "[]\n"


def test_training_stopped_by_ctrl_c_goes_on(
    run: Run, command: Callable[..., "subprocess.Popen[str]"], base_model: str, examples_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"base_model: {base_model}\noutput_dir: {tmp_path / 'out'}\ndata: {{train: {examples_file}, negatives: 1}}\n"
        "student: {iem_hidden: 8, lora_r: 1}\noptimizer: {warmup_steps: 1}\n"
        "run: {batch_size: 4, max_steps: 100000, save_steps: 2, eval_steps: 2, bf16: false}\n"
    )
    process = command("train", config)
    deadline = time.monotonic() + 180
    while not (tmp_path / "out" / "checkpoint-4").is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped; what is written is kept" in err and "Traceback" not in err
    checkpoint = last_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    refused = run("train", config)
    assert refused.exit_code == 2 and "already holds checkpoint-" in refused.stderr
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = run("train", config, "--resume", f"run.max_steps={step + 1}")
    assert resumed.exit_code == 0, resumed.output
    assert D2LLM.from_pretrained(tmp_path / "out").config.iem_hidden == 8
