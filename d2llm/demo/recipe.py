"""Sizes and rates of everything the demonstration trains, and of what the package ships."""

from dataclasses import dataclass, field
from typing import Any

from d2llm.loss_weights import LossWeights
from d2llm.teacher.tuning import TuningConfig
from d2llm.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class TeacherRecipe:
    """How the shipped teacher was tuned."""

    num_layers: int = 12
    query_length: int = 32
    passage_length: int = 80
    #: At first it learns to judge at all, from groups such as ``d2llm teach tune`` makes.
    first: TuningConfig = field(default_factory=lambda: TuningConfig(steps=400))
    #: Then from its student's mistakes.
    second: TuningConfig = field(default_factory=lambda: TuningConfig(steps=200, groups_per_step=5))
    #: Negatives of a group of these: of the student's best, at random, and of BM25's best.
    near: int = 2
    easy: int = 1
    hard: int = 1
    #: How many of the student's best they are drawn from.
    pool: int = 10


@dataclass(frozen=True)
class Phase:
    """One stretch of a student's training."""

    steps: int
    lr: float
    batch_size: int = 32
    #: Hard negatives that an example brings to a batch; without a teacher there are none.
    negatives: int = 0
    #: LoRA's learning rate as a multiple of the heads'.
    lora_lr_scale: float = 0.5
    warmup_steps: int = 10
    #: Bring the rate to zero by the end; a phase that another one follows may hold it.
    decay: bool = True
    seed: int = 0
    #: Steps between checkpoints; None saves at the end only.
    save_steps: int | None = None
    loss: LossWeights = field(default_factory=LossWeights)

    def config(self, base_model: str, output: str) -> TrainConfig:
        """The phase as a run's configuration."""
        save_steps = self.save_steps or self.steps
        return TrainConfig(
            base_model=base_model,
            output_dir=output,
            data=DataConfig(negatives=self.negatives),
            loss=self.loss,
            optimizer=OptimizerConfig(
                lr=self.lr,
                pma_lr=self.lr,
                lora_lr=self.lr * self.lora_lr_scale,
                schedule="linear" if self.decay else "constant_with_warmup",
                warmup_steps=self.warmup_steps,
            ),
            run=RunConfig(
                batch_size=self.batch_size,
                max_steps=self.steps,
                seed=self.seed,
                gradient_checkpointing=False,
                texts_per_chunk=16,
                logging_steps=5,
                eval_steps=save_steps,
                save_steps=save_steps,
                patience=None,
            ),
        )


#: Hard negatives that the teacher scores for every example; a batch draws some of them.
SCORED_NEGATIVES = 8
#: Training examples that the teacher scores.
SCORED_EXAMPLES = 700
#: BM25 results of every held-out query that the teacher re-ranks.
RERANKED = 10

TEACHER = TeacherRecipe()
#: The shipped student: fields of :class:`~d2llm.student.D2LLMConfig`. What BM25 weighs was chosen on validation.
STUDENT: dict[str, Any] = {
    "base_dtype": "bfloat16",
    "lora_r": 32,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "query_length": 32,
    "passage_length": 96,
    "bm25_weight": 0.1,
}
#: What differs where the encoder itself is trained; its rate is the trainer's default.
FULL: dict[str, Any] = {"base_dtype": "float32", "lora_r": 0, "train_base": True}
#: How it was trained. The temperature is where the cross-entropy of the warm start is least; the cosine learns beside.
TRAINING = Phase(
    steps=180,
    lr=3e-4,
    batch_size=64,
    lora_lr_scale=1.0,
    warmup_steps=30,
    save_steps=40,
    loss=LossWeights(in_batch_temperature=0.3, cosine=1.0),
)
#: How much of its way from the encoder it keeps, chosen on validation.
SHARE = 0.5

#: How a demonstration trains its interaction module, on the encoder's embeddings.
DISTIL = Phase(
    steps=40,
    lr=1e-3,
    batch_size=256,
    negatives=8,
    warmup_steps=5,
    seed=2,
    loss=LossWeights(in_batch_temperature=0.3),
)

#: A student on the LLM itself, which is not shipped.
LLM_STUDENT: dict[str, Any] = {
    "base_dtype": "bfloat16",
    "num_layers": 8,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "query_length": 40,
    "passage_length": 96,
}
#: Installed packages whose functions it learnt from, beside the standard library's.
LLM_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "peft",
    "accelerate",
    "sympy",
    "matplotlib",
    "pip",
    "hypothesis",
    "networkx",
    "mypy",
    "huggingface_hub",
    "rich",
    "pydantic",
    "setuptools",
)
#: How it was trained: functions of many packages, then the standard library's, on the paper's weighting of the in-batch
#: loss; its interaction module then learnt from the teacher, on the encoder's embeddings.
_LLM_LOSS = LossWeights(in_batch_form="paper")
LLM_MIXED = Phase(steps=250, lr=5e-4, decay=False, save_steps=50, loss=_LLM_LOSS)
LLM_DOMAIN = Phase(steps=150, lr=4e-4, seed=1, save_steps=50, loss=_LLM_LOSS)
LLM_DISTIL = Phase(steps=120, lr=1e-3, batch_size=256, negatives=8, warmup_steps=5, seed=2)


@dataclass(frozen=True)
class DemoRecipe:
    """What a demonstration trains live."""

    #: The interaction module, with and without the teacher.
    distil: Phase = DISTIL
    #: Training examples that the teacher scores.
    scored_examples: int = SCORED_EXAMPLES
    #: Where the shipped student is not used: a student on another model, and its first phase.
    student: dict[str, Any] = field(default_factory=LLM_STUDENT.copy)
    first: Phase = field(default_factory=lambda: Phase(100, lr=1e-3, decay=False, loss=_LLM_LOSS))
