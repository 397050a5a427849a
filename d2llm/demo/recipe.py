"""Sizes and rates of everything the demonstration trains, and of what the package ships."""

from dataclasses import dataclass, field
from typing import Any

from d2llm.data.docstrings import SPLIT_SEED
from d2llm.losses import LossWeights
from d2llm.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class TeacherRecipe:
    """How the shipped teacher was tuned."""

    num_layers: int = 12
    query_length: int = 32
    passage_length: int = 80
    steps: int = 400
    #: Installed packages whose functions are further training data, and the most pairs taken of each.
    packages: tuple[str, ...] = (
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
    pairs_a_package: int = 800


@dataclass(frozen=True)
class StudentRecipe:
    """A student and the two phases of its training: in-batch alone, then with the teacher."""

    num_layers: int = 8
    query_length: int = 40
    passage_length: int = 96
    lora_r: int = 16
    lora_alpha: int = 32
    batch_size: int = 32
    #: Steps on the in-batch loss alone, which every student of a demonstration shares.
    first_steps: int = 40
    #: Steps after it, with all five losses, or with the in-batch loss alone for the student without a teacher.
    second_steps: int = 30
    #: Steps between checkpoints; None saves at the end of a phase only.
    save_steps: int | None = None
    lr: float = 1e-3
    lora_lr_scale: float = 0.5
    #: Examples of the second phase, and the hard negatives each brings to a batch.
    examples: int = 700
    negatives: int = 2
    loss: LossWeights = field(default_factory=LossWeights)

    def student(self) -> dict[str, Any]:
        """Fields of :class:`~d2llm.student.D2LLMConfig`."""
        return {
            "base_dtype": "bfloat16",
            "num_layers": self.num_layers,
            "lora_r": self.lora_r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": 0.0,
            "query_length": self.query_length,
            "passage_length": self.passage_length,
        }

    def config(self, base_model: str, output: str, second: bool) -> TrainConfig:
        """Configuration of the first phase, or of the second."""
        steps = self.second_steps if second else self.first_steps
        save_steps = self.save_steps or steps
        return TrainConfig(
            base_model=base_model,
            output_dir=output,
            student=self.student(),
            data=DataConfig(negatives=self.negatives if second else 0),
            loss=self.loss,
            optimizer=OptimizerConfig(
                lr=self.lr,
                lora_lr_scale=self.lora_lr_scale,
                # The first phase holds its rate, for the second to take up and bring to zero.
                schedule="linear" if second else "constant_with_warmup",
                warmup_steps=0 if second else 10,
            ),
            run=RunConfig(
                batch_size=self.batch_size,
                max_steps=steps,
                seed=SPLIT_SEED + second,
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
#: BM25 results of every held-out query that the teacher re-ranks.
RERANKED = 10

TEACHER = TeacherRecipe()
DEMO = StudentRecipe()
SHIPPED = StudentRecipe(first_steps=900, second_steps=150, lr=5e-4, save_steps=50)
