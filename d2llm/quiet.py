"""Silence for what libraries report to their own callers and a user of this one can do nothing about."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Show no bar for every file that transformers reads or writes, and no warning that peft gets from it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft asks for it by the name that transformers is about to drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
