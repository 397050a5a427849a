"""What the commands work on: a tiny student, examples and a corpus, as files; and a way to call commands."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from d2llm.cli import app
from d2llm.data.example import Example
from d2llm.data.jsonl import write_examples
from d2llm.student import D2LLM

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Call a command in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def command() -> Callable[..., "subprocess.Popen[str]"]:
    """Start a command in a process of its own."""

    def start(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "d2llm.cli", *map(str, arguments)],
            # A test run in the background has Ctrl-C ignored, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    return start


@pytest.fixture(scope="session")
def student_folder(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "student"
    D2LLM.create(base_model, iem_hidden=16, lora_r=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def examples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight queries, each with a positive and two negatives."""
    texts = [f"{verb} the {noun}" for verb in ("open", "close", "read", "send") for noun in ("file", "socket")]
    examples = [
        Example(f"how to {text}", f"{text} of x", (f"{texts[i - 1]} of x", f"{texts[i - 2]} of x"))
        for i, text in enumerate(texts)
    ]
    path = tmp_path_factory.mktemp("data") / "examples.jsonl"
    write_examples(path, examples)
    return path
