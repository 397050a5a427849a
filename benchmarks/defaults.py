"""What the defaults of a distillation do to a student: ``python -m benchmarks.defaults`` (minutes on two cores).

The interaction module of the shipped student, fresh or as it is shipped, learns from the teacher's scores,
the encoder as it is. The defaults before (random normal rows as a fresh start, the paper's 1/B², a warm-up of 1000
steps, lr 1e-4, the last step) and those of today, three seeds each, on the queries that the demonstration holds out;
beside each the control whose groups have one-hot labels in place of the teacher's scores, and the in-batch loss alone.
Differences are 95 % intervals by bootstrap of the queries, paired, of the mean over seeds.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback

import d2llm_kernels as dk
from d2llm.data.example import Example, text_id
from d2llm.data.validation import Validation
from d2llm.demo.data import load_data
from d2llm.demo.library import library_vectors
from d2llm.demo.recipe import SCORED_EXAMPLES
from d2llm.evaluation.systems import iem_scores
from d2llm.loss_weights import LossWeights
from d2llm.shipped import BASE_MODEL, SCORES, STUDENT
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer, TrainConfig
from d2llm.training.config import DataConfig, OptimizerConfig
from d2llm.training.start import run_data
from d2llm.training.vectors import TextVectors

_DRAWS = 10_000
#: A logit whose sigmoid is 1 in float32, that of its negative 0.
_CERTAIN = 200.0


class Labels:
    """Scores that know the positives alone: 1 for a group's positive, 0 for its negatives."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.header: dict[str, Any] = {}
        self.known = {(text_id(e.query), text_id(p)): p == e.positive for e in examples for p in e.passages}

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float] | None:
        """Logits of probability 1 or 0 in float32, or None for a pair of no group."""
        known = self.known.get((query_id, passage_id))
        return None if known is None else (_CERTAIN if known else -_CERTAIN, 0.0)

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        """None: labels have no features."""
        return None


@dataclass(frozen=True, eq=False)
class Ranks:
    """1 / (rank of the best relevant passage) of every seed's student, (seeds, Nq) each."""

    starts: np.ndarray
    ends: np.ndarray

    def __str__(self) -> str:
        means = self.ends.mean(axis=1)
        spread = f"{means.mean():.3f} ({means.min():.3f} to {means.max():.3f})"
        return f"{self.starts.mean():.3f} | {spread} | {_interval(self.ends - self.starts)}"

    def over(self, other: "Ranks") -> str:
        """By how much these students end above others of the same seeds."""
        return _interval(self.ends - other.ends)


@dataclass(frozen=True)
class Setting:
    """What the runs of a table have in common."""

    #: Start from the shipped interaction module, not from a fresh one.
    shipped: bool
    held_out: Validation
    vectors: TextVectors
    #: (N, D) embeddings of training texts, to which a fresh start is fitted.
    sample: torch.Tensor

    def start(self, seed: int, old: bool) -> D2LLM:
        """The student that a run starts from."""
        student = D2LLM.from_pretrained(STUDENT)
        if not self.shipped:
            torch.manual_seed(seed)
            self._reset(student.iem, old)
        return student

    def _reset(self, iem: dk.IEM, old: bool) -> None:
        iem.reset_parameters("warm", sample=None if old else self.sample)
        if old:
            half = torch.randn(iem.hidden // 2, iem.dim) / iem.dim**0.5
            with torch.no_grad():
                iem.linear1.weight.copy_(torch.cat([torch.cat([half, -half], 1), torch.cat([-half, half], 1)]))

    def reciprocal_ranks(self, student: D2LLM) -> np.ndarray:
        """1 / (rank of the best relevant passage) of every held-out query, (Nq,)."""
        data, vectors = self.held_out, self.vectors
        scores = iem_scores(student, vectors.queries(data.queries), vectors.passages(data.passages), data.task)
        return data.reciprocal_ranks(scores)

    def run(self, config: TrainConfig, student: D2LLM, examples: list[Example], teacher: Any) -> D2LLM:
        """The student, distilled as ``config`` says."""
        data = run_data(examples, config.data, config.run.seed)
        trainer = DistillationTrainer(student, config, data.train, data.validation, teacher, vectors=self.vectors)
        for default in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(default)
        trainer.train()
        return student.eval()


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


def _interval(difference: np.ndarray) -> str:
    """95 % interval of a mean over queries of differences, (seeds, Nq), by bootstrap of the queries."""
    queries = difference.mean(axis=0)
    draw = np.random.default_rng(0).integers(len(queries), size=(_DRAWS, len(queries)))
    low, high = np.percentile(queries[draw].mean(axis=1), [2.5, 97.5])
    return f"{low:+.3f} to {high:+.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--examples", type=int, default=SCORED_EXAMPLES, help="the first of them have the teacher's scores"
    )
    parser.add_argument("--shipped", action="store_true", help="start from the shipped module, not from a fresh one")
    parser.add_argument("--arms", nargs="*", help="names of rows; all by default")
    asked = parser.parse_args()
    data = load_data()
    examples = data.mined(SCORED_EXAMPLES)[: asked.examples]
    student = D2LLM.from_pretrained(STUDENT)
    queries = list(dict.fromkeys([*data.held_out.queries, *(example.query for example in examples)]))
    passages = torch.from_numpy(library_vectors(student, data.library))
    vectors = TextVectors((queries, student.encode(queries, "query", convert_to="torch")), (data.library, passages))
    few = examples[: student.iem.hidden]
    sample = torch.cat([vectors.queries([e.query for e in few]), vectors.passages([e.positive for e in few])])
    setting = Setting(asked.shipped, data.held_out, vectors, sample)
    bare = [Example(e.query, e.positive, task=e.task) for e in examples]
    arms = {
        "labels": (examples, Labels(examples)),
        "teacher": (examples, ScoreTable.load(SCORES)),
        "in-batch": (bare, None),
    }
    columns = "learns from", "start", "MRR, mean (lowest to highest)", "gain", "over before", "over labels"
    print("|", " | ".join(("defaults", *columns)), "|\n|---|---|---:|---:|---:|---:|---:|")
    made: dict[tuple[str, str], Ranks] = {}
    for name in asked.arms or arms:
        for defaults in (before, after):
            ranks = _ranks(setting, defaults, *arms[name], seeds=range(asked.seeds))
            made[defaults.__name__, name] = ranks
            others = (made.get(("before", name)), made.get((defaults.__name__, "labels")))
            against = " | ".join("" if other in (None, ranks) else ranks.over(other) for other in others)
            print(f"| {defaults.__name__} | {name} | {ranks} | {against} |", flush=True)


def _ranks(
    setting: Setting,
    defaults: Callable[[TrainConfig], TrainConfig],
    examples: list[Example],
    teacher: Any,
    seeds: range,
) -> Ranks:
    starts, ends = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(folder, BASE_MODEL)
            config = defaults(replace(config, run=replace(config.run, seed=seed)))
            student = setting.start(seed, old=defaults is before)
            starts.append(setting.reciprocal_ranks(student))
            ends.append(setting.reciprocal_ranks(setting.run(config, student, examples, teacher)))
    return Ranks(np.stack(starts), np.stack(ends))


if __name__ == "__main__":
    main()
