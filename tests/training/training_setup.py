"""Examples and a configuration that train a tiny student in seconds."""

from pathlib import Path
from typing import Any

from d2llm.data.example import Example
from d2llm.training.config import TrainConfig, build_config

NOUNS = ("file", "socket", "lock", "date", "list", "graph")
VERBS = ("open", "close", "read", "write")


def make_examples() -> list[Example]:
    """24 examples of both tasks, 0 to 3 hard negatives, with raw teacher logits for most."""
    pairs = [(verb, noun) for verb in VERBS for noun in NOUNS]
    examples = []
    for i, (verb, noun) in enumerate(pairs):
        negatives = tuple(f"def {verb}_{other}(): pass" for other in NOUNS if other != noun)[: i % 4]
        scores = ((2.0, -1.0), *((-1.0 - k, 1.0) for k in range(len(negatives)))) if i % 5 else None
        task = ("asym", "sym")[i % 2]
        examples.append(Example(f"{verb} the {noun}", f"def {verb}_{noun}(): pass", negatives, task, scores))
    return examples


def make_config(base_model: str, output_dir: Path, **run: Any) -> TrainConfig:
    """A run of 8 steps in batches of 4; ``run`` replaces its settings."""
    settings = {"batch_size": 4, "max_steps": 8, "bf16": False, "logging_steps": 2, "eval_steps": 2, "save_steps": 2}
    return build_config(
        {
            "base_model": base_model,
            "output_dir": str(output_dir),
            "student": {"num_layers": 1, "lora_r": 2, "iem_hidden": 8, "lora_dropout": 0.1},
            "data": {"negatives": 2},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "run": {**settings, **run},
        }
    )
