"""One process of a run whose weights are sharded over several by FSDP."""

from pathlib import Path

from accelerate import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from training_setup import make_config, make_examples

from d2llm.data.validation import Validation
from d2llm.student import D2LLM
from d2llm.student.checkpoint import is_own
from d2llm.training import DistillationTrainer


def run_sharded(base_model: str, output: Path) -> None:
    """Train two steps, evaluate and save at each; every process leaves its shards beside the written student."""
    config = make_config(
        base_model, output, max_steps=2, save_steps=1, eval_steps=1, gradient_checkpointing=False, fsdp={}
    )
    student = D2LLM.create(base_model, **config.student)
    examples = make_examples()
    validation = Validation.by_task(examples)
    trainer = DistillationTrainer(student, config, examples, validation)
    # accelerate shards on a CPU as on a GPU, but does not turn it on by itself there.
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True
    trainer.train()
    trainer.save_model()
    shards = {
        name: value.to_local().detach().clone()
        for name, value in student.named_parameters()
        if is_own(name, student.config.train_base) and isinstance(value, DTensor)
    }
    save_file(shards, output / f"shards-{trainer.args.process_index}.safetensors")
