"""A whole run from its configuration: load, train or resume, save."""

from dataclasses import asdict
from pathlib import Path

from d2llm.checkpoints import check_settings, last_checkpoint
from d2llm.data.example_file import open_examples
from d2llm.errors import InputError
from d2llm.files import write_json
from d2llm.merging import widen
from d2llm.student import D2LLM
from d2llm.student.weights import WEIGHTS, read_weights
from d2llm.training.arguments import autocast_dtype, training_arguments
from d2llm.training.config import TrainConfig
from d2llm.training.preflight import Report, preflight
from d2llm.training.start import RunData, first_student, fit_warm_start, keep_held_out, run_data
from d2llm.training.states import TokenStates
from d2llm.training.teachers import load_teachers
from d2llm.training.trainer import DistillationTrainer
from d2llm.training.vectors import Computed, TextVectors
from d2llm.training.watching import Outcome

#: What came of a run, in its folder.
OUTCOME = "outcome.json"

#: The configuration a folder's checkpoints were made with.
SETTINGS = "training.json"
#: Fields that may change when a run is resumed: they do not change what a step computes.
_MAY_CHANGE = {
    "output_dir",
    "run.epochs",
    "run.max_steps",
    "run.logging_steps",
    "run.save_total_limit",
    "run.patience",
    "run.workers",
    "run.report_to",
}


def train(config: TrainConfig, resume: bool = False) -> D2LLM:
    """Train a student and save it to ``config.output_dir``; a pre-flight is printed and kept there before.

    Args:
        config: the run.
        resume: go on from the newest whole checkpoint of ``output_dir``, if there is one.

    Returns:
        The student: of the best step by validation MRR, the start counting as one, or of the last step without
        validation data.

    Raises:
        InputError: for a missing setting, a folder that already holds checkpoints when not resuming, or a run that
            cannot learn.
        MissingError: for a file that is not there.
        MismatchError: if the teacher scores or the checkpoints were made otherwise than asked for.
    """
    file = _data_file(config)
    checkpoint = prepare_folder(config, resume)
    trainer, data, report = _prepare(config, file, fresh=checkpoint is None)
    report.check()
    if trainer.is_world_process_zero():
        keep_held_out(data, config.data, Path(config.output_dir))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        result = Outcome.of(trainer.state)
        print(result)
        write_json(Path(config.output_dir) / OUTCOME, asdict(result))
    return trainer.student.eval()


def dry_run(config: TrainConfig) -> None:
    """Print the pre-flight of a run and write nothing but its report, and the states that it asks to keep.

    Raises:
        D2LLMError: as :func:`train` does.
    """
    *_, report = _prepare(config, _data_file(config), fresh=True)
    report.check()


def _data_file(config: TrainConfig) -> str:
    if config.data.train is None:
        raise InputError("data.train: expected a file of examples, got none")
    return config.data.train


def _prepare(config: TrainConfig, file: str, fresh: bool) -> tuple[DistillationTrainer, RunData, Report]:
    """The trainer of a run over a file, its examples, and its pre-flight, printed and written to the run's folder.

    ``fresh`` tells that the run begins, and does not go on from a checkpoint.
    """
    scores = config.data.teacher
    teacher = load_teachers(scores, config.data.teacher_header) if scores is not None else None
    data = run_data(open_examples(file), config.data, config.run.seed)
    student = first_student(config)
    # The decorated signature that transformers gives this method hides its own argument.
    student.to(training_arguments(config, evaluates=False).device)  # type: ignore[arg-type]
    vectors = _computed(student, data, config)
    if fresh and config.init_from is None:
        fit_warm_start(student, data.train, config.run.seed, vectors)
    trainer = DistillationTrainer(student, config, data.train, data.validation, teacher, vectors=vectors)
    report = preflight(trainer, data.train)
    if trainer.is_world_process_zero():
        print(data.told)
        print(report)
        report.write(Path(config.output_dir))
    return trainer, data, report


def _computed(student: D2LLM, data: RunData, config: TrainConfig) -> Computed | None:
    """What an encoder that stays as it is, or its base, makes of every text of a run."""
    if not (config.run.interaction_only or config.run.cache_states):
        return None
    examples = [*data.train, *(data.held_out or ())]
    if config.run.interaction_only:
        return TextVectors.encode(student, examples)
    arguments = training_arguments(config, evaluates=False)
    # The first process computes them, the others find them.
    with arguments.main_process_first(desc="hidden states"):
        widen(student)
        return TokenStates.kept(student, examples, Path(config.output_dir), autocast_dtype(config.run))


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
