"""What the defaults of a distillation do to a student: ``python -m benchmarks.defaults`` (minutes on two cores).

The student after its first phase learns from the teacher's 700 scored examples, its encoder as it is. The defaults
before (the paper's 1/B², a warm-up of 1000 steps, lr 1e-4, the last step) and those of today, three seeds each, on the
queries that the demonstration holds out; beside each the control whose groups have one-hot labels in place of the
teacher's scores, and the in-batch loss alone.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback

from d2llm.data.example import Example, text_id
from d2llm.data.validation import Validation
from d2llm.demo.data import load_data
from d2llm.demo.first_phase import load_first_phase
from d2llm.demo.library import library_vectors
from d2llm.demo.recipe import SCORED_EXAMPLES
from d2llm.evaluation.systems import iem_scores
from d2llm.losses import LossWeights
from d2llm.shipped import BASE_MODEL, SCORES
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer, TrainConfig
from d2llm.training.config import DataConfig, OptimizerConfig
from d2llm.training.start import run_data
from d2llm.training.vectors import TextVectors

_DRAWS = 10_000


class Labels:
    """Scores that know the positives alone: 1 for a group's positive, 0 for its negatives."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.header: dict[str, Any] = {}
        self.known = {(text_id(e.query), text_id(p)): float(p == e.positive) for e in examples for p in e.passages}

    def probability(self, query_id: str, passage_id: str, temperature: float = 1.0) -> float | None:
        """1, 0, or None for a pair of no group."""
        return self.known.get((query_id, passage_id))

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        """None: labels have no features."""
        return None


def before(config: TrainConfig) -> TrainConfig:
    """The defaults that were."""
    return replace(
        config,
        loss=LossWeights(in_batch_form="paper"),
        optimizer=OptimizerConfig(lr=1e-4, schedule="constant_with_warmup", warmup_steps=1000),
        data=DataConfig(validation_share=0),
    )


def after(config: TrainConfig) -> TrainConfig:
    """The defaults that are."""
    return config


def reciprocal_ranks(student: D2LLM, data: Validation, vectors: TextVectors) -> np.ndarray:
    """1 / (rank of the best relevant passage) of every query, (Nq,)."""
    scores = iem_scores(student, vectors.queries(data.queries), vectors.passages(data.passages), data.task)
    return data.reciprocal_ranks(scores)


def run(config: TrainConfig, examples: list[Example], teacher: Any, vectors: TextVectors) -> D2LLM:
    """The first phase's student, distilled as ``config`` says."""
    student = load_first_phase()
    data = run_data(examples, config.data, config.run.seed)
    trainer = DistillationTrainer(student, config, data.train, data.validation, teacher, vectors=vectors)
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    trainer.train()
    return student.eval()


def interval(difference: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean difference over queries, by bootstrap."""
    draw = np.random.default_rng(0).integers(len(difference), size=(_DRAWS, len(difference)))
    low, high = np.percentile(difference[draw].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    data = load_data()
    examples = data.mined(SCORED_EXAMPLES)[:SCORED_EXAMPLES]
    bare = [Example(e.query, e.positive, task=e.task) for e in examples]
    first = load_first_phase()
    held_out = data.held_out
    queries = list(dict.fromkeys([*held_out.queries, *(example.query for example in examples)]))
    # Of the shipped student, whose encoder is the first phase's.
    passages = torch.from_numpy(library_vectors(first, data.library))
    vectors = TextVectors((queries, first.encode(queries, "query", convert_to="torch")), (data.library, passages))
    start = reciprocal_ranks(first, held_out, vectors)
    arms = {
        "teacher": (examples, ScoreTable.load(SCORES)),
        "labels in its place": (examples, Labels(examples)),
        "in-batch loss alone": (bare, None),
    }
    print(f"| defaults | groups | MRR, mean (spread of {len(seeds)} seeds) | against the start, 95 % |")
    print("|---|---|---:|---:|")
    print(f"| none: the start | | {start.mean():.3f} | |")
    for defaults in (before, after):
        for name, (given, teacher) in arms.items():
            found = []
            for seed in seeds:
                with tempfile.TemporaryDirectory() as folder:
                    config = TrainConfig(BASE_MODEL, folder)
                    config = defaults(replace(config, run=replace(config.run, seed=seed)))
                    found.append(reciprocal_ranks(run(config, given, teacher, vectors), held_out, vectors))
            means = [float(each.mean()) for each in found]
            low, high = interval(np.mean(found, axis=0) - start)
            row = (defaults.__name__, name, f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})")
            print(f"| {' | '.join(row)} | {low:+.3f} to {high:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
