"""The report of a pre-flight."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from d2llm.data.columns import changed
from d2llm.data.example import Example
from d2llm.errors import InputError
from d2llm.files import write_json
from d2llm.training.preflight.facts import Facts, gather
from d2llm.training.preflight.findings import errors, warnings
from d2llm.training.preflight.text import as_text
from d2llm.training.preflight.trial import StepCost, try_steps

if TYPE_CHECKING:
    from d2llm.training.trainer import DistillationTrainer

#: Where a run's folder keeps the report.
REPORT = "preflight.json"


@dataclass(frozen=True)
class Report:
    """What was found; a run with ``errors`` cannot learn."""

    facts: Facts
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    #: None where steps were not tried.
    cost: StepCost | None

    def __str__(self) -> str:
        return as_text(self.facts, self.cost, self.warnings, self.errors)

    def write(self, folder: Path) -> None:
        """Keep the report in the run's folder, atomically."""
        write_json(folder / REPORT, asdict(self))

    def check(self) -> None:
        """Make sure that the run can learn.

        Raises:
            InputError: with every reason why it cannot.
        """
        if self.errors:
            raise InputError("this run cannot learn: " + "; ".join(self.errors))


def preflight(trainer: "DistillationTrainer", given: Sequence[Example]) -> Report:
    """Examine a run before its first step, which changes nothing of it.

    Args:
        trainer: of the run, before it trains.
        given: its training examples as they were read.

    Returns:
        The report. Steps are tried in the first process, unless the run cannot learn or its weights are sharded.
    """
    # Not what the trainer draws from, which may depend on how far it has trained.
    cleaned = changed(given, trainer.collator.known.clean)
    facts = gather(trainer, given, cleaned)
    wrong = tuple(errors(facts, trainer.config))
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    tried = not (wrong or sharded) and trainer.is_world_process_zero()
    cost = try_steps(trainer, cleaned) if tried else None
    return Report(facts, wrong, tuple(warnings(facts, trainer.config, cost)), cost)
