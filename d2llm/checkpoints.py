"""Where a run of transformers' Trainer stopped, how it ended, and whether it is the same run."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, MismatchError, MissingError, shown
from d2llm.files import read_json

_PREFIX = "checkpoint-"
#: A checkpoint's file of what the trainer knew; written last of all.
STATE = "trainer_state.json"
#: What a run is watched by, in its trainer's log.
METRIC = "eval_mrr"


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
            read_json(path / STATE)
            if check is not None:
                check(path)
        except (FormatError, MissingError):
            continue
        return path
    return None


def result(checkpoint: Path, max_steps: int, patience: int | None = None) -> Path | None:
    """The checkpoint that holds what a run made: None while the newest one leaves steps to train.

    transformers' Trainer would take one step more.

    Args:
        checkpoint: the newest one of the run.
        max_steps: steps of the whole run.
        patience: evaluations without a better metric that end it; None where nothing ends it early.

    Raises:
        MissingError, FormatError: for a checkpoint without its state.
    """
    state = read_json(checkpoint / STATE)
    ended_early = patience is not None and waited(state["log_history"], state.get("best_global_step")) >= patience
    if state["global_step"] < max_steps and not ended_early:
        return None
    # The best step that was saved, which may be the start. By its name: the folder may have moved since.
    best = state.get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def waited(history: Iterable[Mapping[str, Any]], best: int | None) -> int:
    """Evaluations of a run since its best step, by the log of its trainer."""
    return sum(METRIC in entry and entry["step"] > (best or 0) for entry in history)


def check_settings(file: Path, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Make sure that a folder was started with the settings of now.

    Args:
        file: the settings that it was started with.
        settings: those of now, nested.
        free: dotted names of those that may differ.

    Raises:
        MissingError, FormatError: if they cannot be read.
        MismatchError: naming the first that differs, what it was, what it is, and the remedy.
    """
    before, now = _flat(read_json(file)), _flat(settings)
    for name in sorted((before.keys() | now.keys()) - set(free)):
        if before.get(name) != now.get(name):
            raise MismatchError(
                f"{name}: expected {shown(before.get(name))}, with which {file.parent} was started, got "
                f"{shown(now.get(name))}; give what it was started with, or name another folder"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, with tuples as the lists that JSON makes of them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
