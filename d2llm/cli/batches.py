"""The pairs that will meet in the batches of a run, as work for the teacher."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2llm.data.example import Example
from d2llm.teacher.scoring import Work, plan_pairs
from d2llm.training.config import DataConfig, RunConfig, load_config
from d2llm.training.plan import Plan, in_batch_pairs
from d2llm.training.start import parted


def run_of(
    path: Path | None,
    seed: int | None = None,
    batch_size: int | None = None,
    epochs: float | None = None,
    max_steps: int | None = None,
) -> tuple[RunConfig, DataConfig]:
    """The parts of a run's configuration that decide its batches.

    Args:
        path: YAML file of the run; None takes the defaults.
        seed, batch_size, epochs, max_steps: of the run; None leaves one as it is.

    Raises:
        D2LLMError: for an absent or malformed file, or a value out of range.
    """
    asked = {"seed": seed, "batch_size": batch_size, "epochs": epochs, "max_steps": max_steps}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if "epochs" in given:
        # A number of epochs asked for outright is not to be cut short by the file's number of steps.
        given.setdefault("max_steps", None)
    # The checks of a whole configuration apply, whose two required fields do not matter here.
    config = load_config(path, () if path is not None else ("base_model=none", "output_dir=none"))
    config = replace(config, run=replace(config.run, **given))
    return config.run, config.data


def in_batch_work(examples: Sequence[Example], run: RunConfig, data: DataConfig, world_size: int = 1) -> list[Work]:
    """Every pair of a query and another example's positive that a run meets, each once, by task.

    Args:
        examples: the training examples, in the order of the file that the run reads.
        run: length, batch size and seed of the run.
        data: whether a batch holds one task, and what of the examples is held out.
        world_size: processes that will train.

    Raises:
        InputError: if the examples do not fill a batch.
    """
    examples = parted(examples, data, run.seed).train
    pairs: dict[str, list[tuple[str, str]]] = {}
    for i, j in in_batch_pairs(examples, Plan.of(examples, run, data, world_size)):
        pairs.setdefault(examples[i].task, []).append((examples[i].query, examples[j].positive))
    return [work for task in sorted(pairs) for work in plan_pairs(pairs[task], task)]
