"""The defaults on real data: the shipped encoder, the standard library's functions, the shipped teacher's scores."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d2llm.data.docstrings import hold_out
from d2llm.data.example import Example, text_id
from d2llm.data.validation import Validation
from d2llm.demo.library import library_vectors
from d2llm.evaluation.systems import student_mrr
from d2llm.shipped import BASE_MODEL, SCORES, STUDENT
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training import DistillationTrainer, TrainConfig
from d2llm.training.config import DataConfig, RunConfig
from d2llm.training.start import fit_warm_start
from d2llm.training.vectors import TextVectors
from d2llm.training.watching import Outcome

#: Queries to train on and to be measured on; neither are the demonstration's.
TRAIN, HELD_OUT = 96, 100


@pytest.fixture(scope="module")
def student() -> D2LLM:
    return D2LLM.from_pretrained(STUDENT)


@pytest.fixture(scope="module")
def data(library_pairs: tuple[Example, ...]) -> tuple[list[Example], list[Example], ScoreTable]:
    """Training pairs that the teacher has judged, each with two negatives that it has too, and held-out pairs."""
    table = ScoreTable.load(SCORES)
    rest, _ = hold_out(list(library_pairs))
    train, held_out = hold_out(rest, HELD_OUT, seed=1)
    passages = {text_id(pair.positive): pair.positive for pair in train}
    judged: dict[str, list[str]] = {}
    for query, passage in dict(table.items()):
        if passage in passages:
            judged.setdefault(query, []).append(passages[passage])
    examples = []
    for pair in train:
        found = [text for text in judged.get(text_id(pair.query), []) if text != pair.positive]
        if len(found) > 1:
            examples.append(replace(pair, negatives=tuple(found[:2])))
    return random.Random(0).sample(examples, TRAIN), held_out, table


@pytest.fixture(scope="module")
def vectors(student: D2LLM, data: tuple[list[Example], list[Example], ScoreTable]) -> TextVectors:
    examples = [*data[0], *data[1]]
    queries = list(dict.fromkeys(e.query for e in examples))
    passages = list(dict.fromkeys(p for e in examples for p in e.passages))
    embedded = student.encode(queries, "query", convert_to="torch")
    return TextVectors((queries, embedded), (passages, torch.from_numpy(library_vectors(student, passages))))


def test_a_fresh_start_is_the_cosine_and_defaults_do_not_end_below_it(
    student: D2LLM,
    data: tuple[list[Example], list[Example], ScoreTable],
    vectors: TextVectors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, held_out, table = data
    validation = Validation.from_examples(held_out)
    embedded = vectors.queries(validation.queries), vectors.passages(validation.passages)

    def looked_up(texts: list[str], kind: str, **_: object) -> torch.Tensor:
        return vectors.queries(texts) if kind == "query" else vectors.passages(texts)

    monkeypatch.setattr(student, "encode", looked_up)
    fit_warm_start(student, train, seed=0)
    start = student_mrr(student, validation, vectors=embedded)
    assert abs(start["mrr"] - start["mrr_cosine"]) < 0.02

    config = TrainConfig(str(tmp_path), BASE_MODEL, data=DataConfig(negatives=2), run=RunConfig(epochs=4))
    trainer = DistillationTrainer(student, config, train, validation, table, vectors=vectors)
    trainer.train()
    outcome, end = Outcome.of(trainer.state), student_mrr(student, validation, vectors=embedded)
    assert outcome.start_mrr == pytest.approx(start["mrr"]) and outcome.mrr == pytest.approx(end["mrr"])
    assert end["mrr"] >= start["mrr"]
    # Nor does the training itself do damage that only the return to the best step would hide: published weights ended
    # 0.1 below. An encoder that learnt from such pairs has little to gain, and 0.018 was lost on these 100 queries.
    measured = [entry["eval_mrr"] for entry in trainer.state.log_history if "eval_mrr" in entry]
    assert measured[-1] > start["mrr"] - 0.03
