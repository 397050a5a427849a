"""Rank-distillation losses held against each other on validation.

A fresh interaction module on the shipped student's embeddings learns from the shipped teacher's scores by the defaults
of ``d2llm train``, once for each loss and seed; beside the in-batch loss, which all have, only the loss of a group
differs. The seed moves the start, the draws and the examples held out for the best step. Ranks are of the docstrings by
which settings are chosen, over every passage; no example that is learnt from shares a text with them.
"""

import tempfile
from dataclasses import replace

import numpy as np
import torch

from benchmarks.defaults import Setting
from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import Measured
from benchmarks.quality.sets import over_library
from d2llm.data.docstrings import without
from d2llm.data.example import Example
from d2llm.demo.corpus import validation_pairs
from d2llm.demo.data import load_data
from d2llm.demo.library import library_vectors
from d2llm.demo.recipe import SCORED_EXAMPLES
from d2llm.evaluation.significance import Means, difference
from d2llm.loss_weights import RANKS, LossWeights
from d2llm.shipped import BASE_MODEL, SCORES, STUDENT
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import TrainConfig
from d2llm.training.vectors import TextVectors

_NONE = LossWeights(alpha=0, beta=0, gamma=0, eta=0)
#: What a group's scores are learnt by, beside the in-batch loss; labels alone first, which all are held against.
LOSSES = {
    "contrastive, labels alone": replace(_NONE, label_share=1.0),
    "CI + RI": replace(_NONE, alpha=1.0, beta=1.0),
    **{name: replace(_NONE, rank=name) for name in RANKS},
}
_START = "start"
PART = "rank-losses"
_SET = "docstrings"
SEEDS = 3


def setting() -> tuple[Setting, list[Example]]:
    """What the runs have in common, and what they learn from."""
    data, held_out = load_data(), over_library(validation_pairs())
    examples = without(data.mined(SCORED_EXAMPLES)[:SCORED_EXAMPLES], validation_pairs())
    student = D2LLM.from_pretrained(STUDENT)
    queries = list(dict.fromkeys([*held_out.queries, *(example.query for example in examples)]))
    passages = torch.from_numpy(library_vectors(student, list(held_out.passages)))
    vectors = TextVectors(
        (queries, student.encode(queries, "query", convert_to="torch")), (held_out.passages, passages)
    )
    few = examples[: student.iem.hidden]
    sample = torch.cat([vectors.queries([e.query for e in few]), vectors.passages([e.positive for e in few])])
    return Setting(False, held_out, vectors, sample), examples


def measure(measured: Measured) -> None:
    """Whatever is not measured yet."""
    names = [(loss, seed) for seed in range(SEEDS) for loss in (_START, *LOSSES)]
    missing = [name for name in names if measured.ranks(_SET, _system(*name)) is None]
    if not missing:
        return
    common, examples = setting()
    teacher = ScoreTable.load(SCORES)
    for loss, seed in missing:
        student = common.start(seed, old=False)
        if loss != _START:
            with tempfile.TemporaryDirectory() as folder:
                config = TrainConfig(folder, BASE_MODEL, loss=LOSSES[loss])
                student = common.run(replace(config, run=replace(config.run, seed=seed)), student, examples, teacher)
        ranks = common.reciprocal_ranks(student)
        measured.keep(_SET, _system(loss, seed), ranks)
        print(f"{_system(loss, seed)}: {ranks.mean():.4f}", flush=True)


def table(measured: Measured) -> list[str]:
    """Markdown lines: MRR over the seeds, and the difference to labels alone, paired, of the mean over seeds."""
    found = {
        loss: np.stack(
            [ranks for seed in range(SEEDS) if (ranks := measured.ranks(_SET, _system(loss, seed))) is not None]
        )
        for loss in (_START, *LOSSES)
    }
    first = found[next(iter(LOSSES))].mean(axis=0)
    lines = ["| loss of a group | MRR | lowest to highest | over labels alone, 95 % |", "| --- | ---: | ---: | ---: |"]
    for loss, ranks in found.items():
        means, apart = ranks.mean(axis=1), difference(Means(ranks.mean(axis=0), first))
        over = "" if loss == next(iter(LOSSES)) else f"{apart.low:+.3f} to {apart.high:+.3f}"
        spread = f"{means.min():.3f} to {means.max():.3f}"
        lines.append(f"| {loss} | {means.mean():.3f} ± {means.std(ddof=1):.3f} | {spread} | {over} |")
    return lines


def _system(loss: str, seed: int) -> str:
    return f"{loss}, {seed}"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not measured yet."""
    measured = Measured(asked.work, PART)
    measure(measured)
    return {PART: table(measured)}
