"""Teaching the teacher: LoRA fine-tuning of a causal LLM on labelled groups of pairs.

A small LLM judges no better than chance before this. The loss is the cross-entropy of the
positive among its group plus the binary cross-entropy of every pair, both on z_yes - z_no: the
first orders passages of one query, the second makes the probabilities mean the same across queries.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from d2llm.checkpoints import check_settings, last_checkpoint, result
from d2llm.data.example import Example, text_id
from d2llm.errors import InputError, MissingError
from d2llm.files import sha256, write_json
from d2llm.merging import multiplies_bfloat16, widen
from d2llm.quiet import quiet
from d2llm.teacher.adapter import ADAPTER, ADAPTER_WEIGHTS, save_adapter, with_adapter
from d2llm.teacher.model import NO, YES, Teacher
from d2llm.teacher.prompt import left_pad
from d2llm_kernels import accelerate

#: Chunks of like length that a step's prompts are run in.
CHUNKS = 3
#: In a tuning's folder: what it was started with.
TUNING = "tuning.json"
#: Settings that change no step.
_MAY_CHANGE = ("save_steps", "model")


@dataclass(frozen=True)
class TuningConfig:
    """LoRA and optimisation of the teacher; the learning rate falls linearly to 0 after the warm-up.

    Raises:
        InputError: for a count below 1, a negative warm-up or a learning rate that is not positive.
    """

    steps: int = 600
    groups_per_step: int = 6
    learning_rate: float = 4e-4
    warmup_steps: int = 20
    lora_r: int = 16
    lora_alpha: int = 32
    seed: int = 0
    save_steps: int = 50
    bf16: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "groups_per_step", "lora_r", "lora_alpha", "save_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps: expected 0 or more, got {self.warmup_steps}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate: expected a positive number, got {self.learning_rate}")


def tuning_loss(differences: Tensor) -> Tensor:
    """Cross-entropy of the positive in its group + binary cross-entropy of the pairs, a scalar.

    With d = z_yes - z_no and the positive at index 0, the mean over groups of
    ``-log softmax(d)[0] + 0.5 softplus(-d_0) + 0.5/K sum_k softplus(d_k)``.

    Args:
        differences: d, shape (B, 1+K), floating.
    """
    first = torch.zeros(len(differences), dtype=torch.int64, device=differences.device)
    labels = F.one_hot(first, differences.shape[1]).to(differences)
    # Negatives outnumber the positive; weigh both sides alike so that 0.5 stays the boundary.
    weights = torch.full_like(differences, 0.5 / max(1, differences.shape[1] - 1))
    weights[:, 0] = 0.5
    binary = F.binary_cross_entropy_with_logits(differences, labels, weights, reduction="sum") / len(differences)
    return F.cross_entropy(differences, first) + binary


def tune(
    teacher: Teacher,
    groups: Sequence[Example],
    output: str | os.PathLike[str],
    config: TuningConfig,
    callbacks: Sequence[TrainerCallback] = (),
) -> Teacher:
    """Fine-tune ``teacher`` by LoRA on groups of equal size, of one or both tasks; its adapter is ``output/adapter``.

    A teacher that has an adapter learns on with it, at its rank. Checkpoints go to ``output`` every
    ``config.save_steps`` steps; calling again with the same arguments and a teacher as it was goes on from the last
    whole one, and trains nothing where the tuning was finished.

    Returns:
        The same teacher, in evaluation mode, with the adapter on it and named in its header.

    Raises:
        InputError: for no groups, groups of different sizes or without negatives, or a task without a template.
        MismatchError: if ``output`` was started with other settings, groups or another teacher.
        MissingError: if it holds a tuning of which nothing says how it was made.
    """
    sizes = {len(group.passages) for group in groups}
    if len(sizes) != 1 or min(sizes) < 2:
        raise InputError(f"groups: expected one size for all of them, 2 or more, got {sorted(sizes) or 'none'}")
    folder = Path(output)
    adapter = folder / ADAPTER
    # What it is not tuned for it is not asked unless someone asks for that.
    teacher.builders = {task: teacher.builder(task) for task in sorted({group.task for group in groups})}
    checkpoint = _prepare_folder(folder, adapter, {**asdict(config), **teacher.header(), "groups": _digest(groups)})
    done = adapter if adapter.is_dir() else checkpoint and result(checkpoint, config.steps)
    if done is not None:
        if isinstance(teacher.decoder, PeftModel):
            teacher.decoder = teacher.decoder.unload()
        teacher.decoder = with_adapter(teacher.decoder, done)
    else:
        _train(teacher, groups, folder, config, callbacks, checkpoint)
    if done != adapter:
        save_adapter(teacher.decoder, teacher.settings(), adapter)
    teacher.origin["adapter"] = sha256(adapter / ADAPTER_WEIGHTS)
    return teacher.eval()


def _prepare_folder(folder: Path, adapter: Path, settings: dict[str, Any]) -> Path | None:
    """Note what a tuning is made of, and find the checkpoint to go on from; None starts afresh."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None or adapter.is_dir():
        if not (folder / TUNING).is_file():
            raise MissingError(
                f"{folder / TUNING}: file not found, so that nothing tells what {folder} was tuned with; "
                "name another folder"
            )
        check_settings(folder / TUNING, settings, _MAY_CHANGE)
    write_json(folder / TUNING, settings)
    return checkpoint


def _digest(groups: Sequence[Example]) -> str:
    """How many groups there are, and 16 hex digits of what is in them."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{group.task} {len(group.passages)}".encode())
        for text in (group.query, *group.passages):
            digest.update(bytes.fromhex(text_id(text)))
    return f"{len(groups)}, {digest.hexdigest()[:16]}"


def _train(
    teacher: Teacher,
    groups: Sequence[Example],
    folder: Path,
    config: TuningConfig,
    callbacks: Sequence[TrainerCallback],
    checkpoint: Path | None,
) -> None:
    """Put LoRA on the teacher and train it, from a checkpoint where one is given."""
    torch.manual_seed(config.seed)
    widen(teacher.decoder)
    if isinstance(teacher.decoder, PeftModel):
        for name, weight in teacher.decoder.named_parameters():
            weight.requires_grad_("lora_" in name)
    else:
        lora = LoraConfig(
            r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="FEATURE_EXTRACTION"
        )
        with quiet():
            teacher.decoder = get_peft_model(teacher.decoder, lora)
    teacher.decoder = accelerate(teacher.decoder)
    arguments = _arguments(os.fspath(folder), config)
    # The trainer moves the decoder alone.
    teacher.head.to(arguments.device)
    trainer = _TuningTrainer(
        teacher,
        model=teacher.decoder,
        args=arguments,
        train_dataset=list(groups),
        data_collator=_GroupCollator(teacher),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else os.fspath(checkpoint))


def _arguments(output: str, config: TuningConfig) -> TrainingArguments:
    return TrainingArguments(
        output_dir=output,
        max_steps=config.steps,
        per_device_train_batch_size=config.groups_per_step,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        bf16=config.bf16 and multiplies_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=10,
        seed=config.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
    )


class _GroupCollator:
    """Groups as prompts in chunks of like length: (inputs, rows) where rows places a chunk's pairs in the batch."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def __call__(self, groups: Sequence[Example]) -> dict[str, Any]:
        tasks = [group.task for group in groups for _ in group.passages]
        prompts = [
            prompt
            for group in groups
            for prompt in self.teacher.builder(group.task).build([group.query] * len(group.passages), group.passages)
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        # One padded batch would be as long as its longest prompt; thirds waste little.
        size = -(-len(order) // CHUNKS)
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        pad = self.teacher.tokenizer.pad_token_id
        return {
            "inputs": [left_pad([prompts[i] for i in rows], pad) for rows in chunks],
            "rows": torch.tensor([i for rows in chunks for i in rows]),
            "tasks": [[tasks[i] for i in rows] for rows in chunks],
            "groups": len(groups),
        }


class _TuningTrainer(Trainer):
    def __init__(self, teacher: Teacher, **options: Any) -> None:
        super().__init__(**options)
        self.teacher = teacher

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        chunks = []
        for chunk, tasks in zip(inputs["inputs"], inputs["tasks"], strict=True):
            # The decoder is called through ``model``, so that a distributed wrapper sees its forward.
            hidden = model(**chunk, use_cache=False).last_hidden_state[:, -1]
            chunks.append(self._answer_logits(hidden, tasks))
        logits = torch.cat(chunks)
        differences = torch.zeros_like(logits[:, YES]).index_copy(0, inputs["rows"], logits[:, YES] - logits[:, NO])
        loss = tuning_loss(differences.view(inputs["groups"], -1))
        return (loss, {"differences": differences}) if return_outputs else loss

    def _answer_logits(self, hidden: Tensor, tasks: Sequence[str]) -> Tensor:
        """Logits (B, 2) of each row by the answers of its task."""
        by_task = {task: self.teacher.answer_logits(hidden, task) for task in sorted(set(tasks))}
        return torch.stack([by_task[task][row] for row, task in enumerate(tasks)])
