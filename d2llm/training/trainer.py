"""transformers' Trainer with planned batches, the losses and evaluation by retrieval quality."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from d2llm.checkpoints import STATE, result
from d2llm.compiling import check_compiler
from d2llm.data.columns import changed
from d2llm.data.example import Example
from d2llm.data.positives import KnownPositives
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.losses import cosines, d2llm_loss, false_negative_mask
from d2llm.merging import widen
from d2llm.student import D2LLM
from d2llm.student.checkpoint import load_weights
from d2llm.student.gathering import gathered
from d2llm.student.weights import WEIGHTS, read_weights
from d2llm.training.arguments import autocast_dtype, optimizer_class, training_arguments
from d2llm.training.collator import Collator, Scores
from d2llm.training.config import OptimizerConfig, TrainConfig
from d2llm.training.mined import MineAfresh, MinedExamples
from d2llm.training.plan import EpochExamples, Plan, PlannedBatches
from d2llm.training.shards import check_sharding, whole_weights
from d2llm.training.vectors import Computed
from d2llm.training.watching import Watch

_TARGETS = ("valid", "duplicates", "s", "log_odds", "s_in_batch", "relation")


class DistillationTrainer(Trainer):
    """Trains a student on examples, with or without a teacher's scores.

    Batches follow :class:`d2llm.training.plan.Plan`, each loss part is logged under ``loss_<part>``, checkpoints
    hold what is trained only, and a run that is killed and resumed ends, on the CPU, with the same bits as one that
    was not. With validation data the best step is what remains, the start among them.
    """

    def __init__(
        self,
        student: D2LLM,
        config: TrainConfig,
        examples: Sequence[Example],
        validation: Validation | Mapping[str, Validation] | None = None,
        teacher: Scores | Mapping[str, Scores] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        vectors: Computed | None = None,
    ) -> None:
        """Make the trainer.

        Args:
            student: trained in place.
            config: ``optimizer``, ``run``, ``loss``, ``mining``, ``data.negatives`` and ``output_dir`` are read here.
            examples: training examples.
            validation: held-out queries, of one task or by task; turns on evaluation, early stopping and the return to
                the best step.
            teacher: teacher scores, for both tasks or by task; None trains on scores that examples carry, or on labels
                alone.
            callbacks: further callbacks.
            vectors: embeddings of every text of the examples and of ``validation``, on which the interaction module
                alone is then trained; or their states, on which it is trained with the pooling.

        Raises:
            InputError: as :func:`~d2llm.training.arguments.training_arguments`,
                :func:`~d2llm.training.arguments.optimizer_class` and :func:`~d2llm.training.shards.check_sharding` do,
                if the examples do not fill a batch, several GPUs are to be driven by one process, a base is to be
                trained in half precision, or false negatives are to be filtered by a teacher whose scores are not
                given.
            MissingError: if the LLM is to be compiled and torch cannot compile here, or for a package that is asked
                for and not installed.
        """
        if student.config.train_base and student.config.base_dtype != "float32":
            raise InputError(
                "student.base_dtype: expected float32 where the base is trained, since small updates vanish in fewer "
                f"bits, got {student.config.base_dtype}"
            )
        widen(student)
        self.student = student
        self.config = config
        self.validation = validation
        self.vectors = vectors
        self.part_sums: dict[str, Tensor] = {}
        self.part_steps = 0
        arguments = training_arguments(config, validation is not None)
        self.optimizer_class = optimizer_class(arguments)
        if arguments.n_gpu > 1:
            raise InputError(
                f"devices: expected one process a GPU (torchrun, accelerate launch), got one for {arguments.n_gpu}"
            )
        if config.data.false_negative_filter == "teacher" and teacher is None:
            raise InputError("data.false_negative_filter: 'teacher' needs a file of scores (data.teacher), got none")
        self.plan = Plan.of(examples, config.run, config.data, arguments.world_size)
        self.gathers = self.plan.shared > config.run.batch_size
        known = KnownPositives(examples)
        clean = changed(examples, known.clean)
        if config.mining.wanted:
            mined = MinedExamples(clean, config, self.plan, student, arguments)
            self.examples: EpochExamples = mined
            callbacks = [*(callbacks or []), MineAfresh(mined)]
        else:
            self.examples = EpochExamples(clean, config.data.negatives, config.run.seed)
        self.collator = Collator(
            student.tokenizer,
            student.config.query_length,
            student.config.passage_length,
            known,
            teacher,
            config.data.teacher_temperature,
            vectors,
            (arguments.process_index, arguments.world_size) if self.gathers else (0, 1),
        )
        watching = [] if validation is None else [Watch(self, config.run.patience)]
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=self.examples,
            # transformers asks for one; :meth:`evaluate` reads the held-out queries itself.
            eval_dataset=[] if validation is not None else None,
            data_collator=self.collator,
            callbacks=[*(callbacks or []), *watching],
        )
        check_sharding(self, config.run)
        if config.run.torch_compile:
            check_compiler(arguments.device)

    def get_train_dataloader(self) -> DataLoader:
        """This process's planned batches; the epoch follows from the steps done, so that resuming needs no more."""
        sampler = PlannedBatches(
            self.plan, self.args.process_index, lambda: self.state.global_step // self.plan.updates
        )
        return DataLoader(
            self.examples,
            batch_sampler=sampler,
            collate_fn=self.collator,
            # The loader draws a seed for its workers, which must not move the model's random state.
            generator=torch.Generator(),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from a checkpoint where one is given; one that leaves nothing to train gives its result.

        Raises:
            MissingError, FormatError: for a checkpoint that is not whole.
        """
        if isinstance(resume_from_checkpoint, str):
            made = result(Path(resume_from_checkpoint), self.plan.all_updates, self.config.run.patience)
            if made is not None:
                load_weights(self.student, read_weights(made / WEIGHTS), made / WEIGHTS)
                self.state = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, STATE))
                return TrainOutput(self.state.global_step, 0.0, {})
        if self.config.run.torch_compile:
            self.student.compile_steps()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that is asked for with every part at its own rate, no decay on biases and LayerNorms."""
        if self.optimizer is None:
            self.optimizer = self.optimizer_class(parameter_groups(self.student, self.config.optimizer))
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted sum of the losses that the batch has targets for (paper section 3.3)."""
        rows = {name: inputs[name] for name in _TARGETS if name in inputs}
        targets = {name: gathered(value) for name, value in rows.items()} if self.gathers else rows
        tokens = {name: value for name, value in inputs.items() if name not in _TARGETS}
        run = self.config.run
        output = model(
            **tokens,
            texts_per_chunk=run.texts_per_chunk,
            cached_gradients=run.cached_gradients,
            gather=self.gathers,
        )
        near = cosines(output.embeddings, output.positive_embeddings)
        total, parts = d2llm_loss(
            output.logits,
            output.in_batch_logits,
            s=targets.get("s"),
            s_in_batch=targets.get("s_in_batch"),
            features=output.features,
            teacher_relation=targets.get("relation"),
            valid=targets["valid"],
            duplicates=self._no_negatives(targets, near),
            embedding_cosines=near,
            log_odds=targets.get("log_odds"),
            weights=self.config.loss,
        )
        for name, value in parts.items():
            self.part_sums[name] = self.part_sums.get(name, 0) + value.detach()
        self.part_steps += 1
        return (total, output) if return_outputs else total

    def _no_negatives(self, targets: dict[str, Tensor], near: Tensor) -> Tensor:
        """(B, B) in-batch columns to mask: known positives, and what the filter of false negatives takes for some.

        Args:
            targets: of the batch.
            near: (B, B) cosines of queries and positives.
        """
        data, known = self.config.data, targets["duplicates"]
        if data.false_negative_filter is None:
            return known
        scores = targets["s_in_batch"] if data.false_negative_filter == "teacher" else near.detach()
        return known | false_negative_mask(scores, data.false_negative_margin)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the mean of every loss part since the last time; parts that had no targets are left out."""
        if "loss" in logs and self.part_steps:
            means = {f"loss_{name}": float(total) / self.part_steps for name, total in self.part_sums.items()}
            logs.update({name: mean for name, mean in means.items() if mean})
            self.part_sums, self.part_steps = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean reciprocal rank on the held-out queries: ``eval_mrr`` (IEM) and ``eval_mrr_cosine``.

        By task they are means over the tasks, beside each task's own, such as ``eval_mrr_sym``.

        Raises:
            InputError: if the trainer has no validation data.
        """
        if self.validation is None:
            raise InputError("validation: expected validation data to evaluate on, got None")
        # Imported here: what compares systems brings trec_eval and scikit-learn along.
        from d2llm.evaluation.systems import student_mrr

        dtype = autocast_dtype(self.config.run)
        with whole_weights(self.student):
            found = {
                task: student_mrr(self.student, held_out, dtype, self._computed(held_out, dtype))
                for task, held_out in self._held_out.items()
            }
        metrics = {
            f"{metric_key_prefix}_{name}": float(np.mean([each[name] for each in found.values()]))
            for name in next(iter(found.values()))
        }
        if len(found) > 1:
            for task, each in found.items():
                metrics |= {f"{metric_key_prefix}_{name}_{task}": value for name, value in each.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _held_out(self) -> Mapping[str, Validation]:
        """The held-out queries by task, none without validation."""
        if self.validation is None or isinstance(self.validation, Mapping):
            return self.validation or {}
        return {self.validation.task: self.validation}

    def _computed(self, held_out: Validation, dtype: torch.dtype | None) -> tuple[Tensor, Tensor] | None:
        """Embeddings of held-out queries and passages, where the base need not be asked for them."""
        if self.vectors is None:
            return None
        return self.vectors.embeddings(self.student, held_out.queries, held_out.passages, dtype)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student's folder, each file atomically; weights that are sharded over processes are gathered."""
        self.student.save_pretrained(output_dir or self.config.output_dir, self.args.should_save)


def parameter_groups(model: nn.Module, options: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer: {interaction, pooling, LoRA, base} x {decayed, not}; empty ones are left out.

    Args:
        model: its parameters that require gradients are grouped.
        options: the learning rates, and the weight decay of all but vectors, that is, biases and LayerNorms.
    """
    rates = {"iem": options.lr, "pma": options.pma_lr, "lora": options.lora_lr, "backbone": options.base_lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "lora" if ".lora_" in name else name.partition(".")[0]
            groups.setdefault((part, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": options.weight_decay if is_matrix else 0.0}
        for (part, is_matrix), parameters in groups.items()
    ]
