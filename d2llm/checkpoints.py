"""Finding where a run of transformers' Trainer stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, MissingError
from d2llm.files import read_json

_PREFIX = "checkpoint-"
_STATE = "trainer_state.json"


def last_checkpoint(folder: Path, check: Callable[[Path], Any] | None = None) -> Path | None:
    """The newest whole checkpoint of a run; one that was being written when the run was killed is passed over.

    Args:
        folder: of the run.
        check: reads more of a checkpoint, and raises FormatError or MissingError where it is not whole.
    """
    steps = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    for step in sorted((int(step) for step in steps if step.isdigit()), reverse=True):
        path = folder / f"{_PREFIX}{step}"
        try:
            # The trainer writes its state last of all.
            read_json(path / _STATE)
            if check is not None:
                check(path)
        except (FormatError, MissingError):
            continue
        return path
    return None
