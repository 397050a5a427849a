"""A run's settings as transformers takes them; what cannot work here is refused."""

import importlib.util
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from d2llm.errors import InputError, MissingError, shown
from d2llm.merging import multiplies_bfloat16
from d2llm.training.config import RunConfig, TrainConfig

#: Where a log may go.
REPORTERS = ("tensorboard", "wandb")
#: FSDP as tests run it; what a configuration says wins.
_FSDP = {"version": 2, "auto_wrap_policy": "NO_WRAP", "state_dict_type": "SHARDED_STATE_DICT"}


def training_arguments(config: TrainConfig, evaluates: bool) -> TrainingArguments:
    """The run's settings as transformers takes them; ``evaluates`` tells whether there is validation data.

    Raises:
        InputError: if a run that evaluates saves at other steps, so that its best step could not be returned to; for an
            unknown optimizer or reporter, both half precisions, float16 without a GPU, or both ways to shard.
        MissingError: for a reporter, or DeepSpeed, that is asked for and not installed.
    """
    run, optimizer = config.run, config.optimizer
    eval_steps, save_steps = run.intervals
    if evaluates and run.save_steps and run.eval_steps and run.save_steps % run.eval_steps:
        raise InputError(
            f"run.save_steps: expected a multiple of run.eval_steps {run.eval_steps}, since the best step that an "
            f"evaluation finds must be saved, got {run.save_steps}"
        )
    _check_precision(run)
    names = [str(each.value) for each in OptimizerNames]
    if optimizer.name not in names:
        raise InputError(f"optimizer.name: expected one of {', '.join(names)}, got {shown(optimizer.name)}")
    return TrainingArguments(
        output_dir=config.output_dir,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulation_steps,
        num_train_epochs=run.epochs,
        max_steps=-1 if run.max_steps is None else run.max_steps,
        optim=optimizer.name,
        learning_rate=optimizer.lr,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        lr_scheduler_type=optimizer.schedule,
        warmup_steps=optimizer.warmup,
        max_grad_norm=optimizer.max_grad_norm,
        seed=run.seed,
        bf16=autocast_dtype(run) == torch.bfloat16,
        fp16=run.fp16,
        use_cpu=not torch.accelerator.is_available(),
        **_checkpointing(run.gradient_checkpointing),
        **_sharding(run),
        # A batch may lack one of the tasks, whose branch then has no gradient.
        ddp_find_unused_parameters=True,
        dataloader_num_workers=run.workers,
        logging_steps=run.logging_steps,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_steps,
        save_steps=save_steps,
        save_total_limit=run.save_total_limit,
        load_best_model_at_end=evaluates,
        metric_for_best_model="mrr" if evaluates else None,
        greater_is_better=True if evaluates else None,
        remove_unused_columns=False,
        report_to=_reporters(run.report_to),
    )


def autocast_dtype(run: RunConfig) -> torch.dtype | None:
    """The number type that a run computes in where that is safe; None for that of its weights."""
    if run.fp16:
        return torch.float16
    return torch.bfloat16 if run.bf16 and multiplies_bfloat16() else None


def optimizer_class(arguments: TrainingArguments) -> Callable[[Any], torch.optim.Optimizer]:
    """What makes the optimizer that the arguments name of groups of parameters.

    Raises:
        InputError: for one that needs more than parameters and rates.
        MissingError: for one whose package is not installed.
    """
    name = OptimizerNames(arguments.optim).value
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ImportError as error:
        raise MissingError(f"optimizer.name: {name}: {error}") from None
    except ValueError as error:
        raise InputError(
            f"optimizer.name: expected one that needs parameters and rates alone, got {name} ({error})"
        ) from None
    return partial(kind, **options)


def _check_precision(run: RunConfig) -> None:
    if run.fp16 and run.bf16:
        raise InputError("run.fp16, bf16: expected one of them, got both; set run.bf16=false")
    if run.fp16 and not torch.accelerator.is_available():
        raise InputError("run.fp16: expected a GPU, found none; set run.bf16=true, which a CPU knows, or neither")


def _reporters(asked: str | list[str]) -> list[str]:
    if asked == "auto":
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    names = [asked] if isinstance(asked, str) else asked
    if names == ["none"]:
        return []
    for name in names:
        if name not in REPORTERS:
            raise InputError(
                f"run.report_to: expected auto, none or some of {', '.join(REPORTERS)}, got {shown(asked)}"
            )
        if importlib.util.find_spec(name) is None:
            raise MissingError(f"run.report_to: {name} is not installed; try: pip install {name}")
    return names


def _sharding(run: RunConfig) -> dict[str, Any]:
    """FSDP or DeepSpeed, each with its settings."""
    if run.fsdp is not None and run.deepspeed is not None:
        raise InputError("run.fsdp, deepspeed: expected one of them, got both")
    if run.deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        raise MissingError("run.deepspeed: DeepSpeed is not installed; try: pip install deepspeed")
    if run.fsdp is not None:
        return {"fsdp": True, "fsdp_config": _FSDP | run.fsdp}
    return {} if run.deepspeed is None else {"deepspeed": run.deepspeed}


def _checkpointing(enabled: bool) -> dict[str, Any]:
    """Recomputation of activations under the name that the installed transformers has for it."""
    known = {each.name for each in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: enabled, f"{name}_kwargs": {"use_reentrant": False}}
