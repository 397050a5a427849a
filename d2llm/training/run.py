"""A whole run from its configuration: load, train or resume, save."""

from dataclasses import asdict
from pathlib import Path

from d2llm.checkpoints import check_settings, last_checkpoint
from d2llm.data.jsonl import read_examples
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.files import write_json
from d2llm.student import D2LLM
from d2llm.student.checkpoint import WEIGHTS, read_weights
from d2llm.training.config import TrainConfig
from d2llm.training.teachers import load_teachers
from d2llm.training.trainer import DistillationTrainer

#: The configuration a folder's checkpoints were made with.
SETTINGS = "training.json"
#: Fields that may change when a run is resumed: they do not change what a step computes.
_MAY_CHANGE = {"output_dir", "run.epochs", "run.max_steps", "run.logging_steps", "run.save_total_limit", "run.patience"}


def train(config: TrainConfig, resume: bool = False) -> D2LLM:
    """Train a student and save it to ``config.output_dir``.

    Args:
        config: the run.
        resume: go on from the newest whole checkpoint of ``output_dir``, if there is one.

    Returns:
        The student: of the best step by validation MRR, or of the last step without validation data.

    Raises:
        InputError: for a missing setting, or a folder that already holds checkpoints when not resuming.
        MissingError: for a file that is not there.
        MismatchError: if the teacher scores or the checkpoints were made otherwise than asked for.
    """
    if config.data.train is None:
        raise InputError("data.train: expected a file of examples, got none")
    checkpoint = prepare_folder(config, resume)
    scores = config.data.teacher
    teacher = load_teachers(scores, config.data.teacher_header) if scores is not None else None
    examples = read_examples(config.data.train)
    held_out = config.data.validation
    validation = Validation.by_task(read_examples(held_out)) if held_out is not None else None
    student = D2LLM.create(config.base_model, seed=config.run.seed, **config.student)
    trainer = DistillationTrainer(student, config, examples, validation, teacher)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    return student.eval()


def prepare_folder(config: TrainConfig, resume: bool) -> Path | None:
    """Make the folder ready and find the checkpoint to go on from; None starts afresh.

    Raises:
        InputError: if the folder holds checkpoints and ``resume`` is false, or a student and no checkpoints.
        MismatchError: if its checkpoints were made with settings that would change the run.
    """
    folder = Path(config.output_dir)
    checkpoint = last_whole(folder)
    if checkpoint is not None and not resume:
        raise InputError(f"output_dir: {folder} already holds {checkpoint.name}; resume it or name another folder")
    if checkpoint is None and (folder / WEIGHTS).exists():
        raise InputError(f"output_dir: {folder} holds a student and no checkpoint to go on from; name another folder")
    settings = asdict(config)
    if checkpoint is not None:
        check_settings(folder / SETTINGS, settings, _MAY_CHANGE)
    write_json(folder / SETTINGS, settings)
    return checkpoint


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose weights can be read too."""
    return last_checkpoint(folder, lambda path: read_weights(path / WEIGHTS))
