"""Every system of a retrieval table against a computation of its own."""

import sys
import types
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from d2llm.backbone import load_encoder, load_tokenizer
from d2llm.bm25 import BM25
from d2llm.data.beir import Collection
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.errors import InputError
from d2llm.evaluation import Run
from d2llm.evaluation.find import find_all
from d2llm.evaluation.lineup import Lineup, parse_systems
from d2llm.evaluation.rerank import rerank
from d2llm.evaluation.scorers import (
    Found,
    Scorer,
    StudentEncoder,
    Vectors,
    bm25_scorer,
    cosine_scorer,
    hybrid_scorer,
    iem_scorer,
    search,
)
from d2llm.evaluation.systems import mean_pool_cosine, student_mrr
from d2llm.fusion import fuse
from d2llm.student import D2LLM

QUERIES = ["open the file", "close the socket of x"]
PASSAGES = ["open a file of x y", "read it", "close the socket of z and then that of x y"]
COLLECTION = Collection(dict(zip("abc", PASSAGES, strict=True)), dict(zip("qr", QUERIES, strict=True)), {})


class LongestFirst:
    """A teacher that says yes to long passages and records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def judge(
        self, queries: Sequence[str], passages: Sequence[str], task: str, *, show_progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        self.asked += zip(queries, passages, strict=True)
        return np.array([[len(passage), 1.0] for passage in passages], np.float32), np.zeros((len(passages), 1))


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, iem_hidden=16)


def names_of(run: Run) -> list[list[str]]:
    return [[run.passages[index] for index in row if index >= 0] for row in run.indices]


@torch.inference_mode()
def test_mean_pooling_in_batches_equals_text_by_text(base_model: str) -> None:
    model, tokenizer = load_encoder(base_model, num_layers=2), load_tokenizer(base_model)

    def embed(text: str) -> torch.Tensor:
        return model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [[torch.cosine_similarity(embed(q), embed(p), dim=0).item() for p in PASSAGES] for q in QUERIES]
    np.testing.assert_allclose(mean_pool_cosine(base_model, 2, QUERIES, PASSAGES), expected, atol=1e-5)


def test_rows_equal_pairwise_scores_whatever_the_block(student: D2LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Vectors.of(StudentEncoder(student), QUERIES, PASSAGES)
    pairs = [(q, p) for q in QUERIES for p in PASSAGES]
    iem = student.score([q for q, _ in pairs], [p for _, p in pairs], "sym").reshape(2, 3)
    q, p = student.encode(QUERIES, kind="query", normalize=True), student.encode(PASSAGES, normalize=True)
    lexical = bm25_scorer("bm25", QUERIES, PASSAGES)
    semantic = iem_scorer("iem", student.iem, vectors, "sym")
    scorers = [cosine_scorer("cosine", vectors), semantic, hybrid_scorer("hybrid", semantic, lexical, 0.3)]
    expected = {"cosine": q @ p.T, "iem": iem, "hybrid": fuse(iem, BM25(PASSAGES).scores(QUERIES), 0.3)}
    for block in (1, 1 << 22):
        monkeypatch.setattr("d2llm.evaluation.scorers._BLOCK", block)
        found = search(scorers, ["q", "r"], list("abc"), depth=2)
        for name, rows in expected.items():
            run = found[name].runs[0]
            np.testing.assert_allclose(run.scores, -np.sort(-rows, axis=1)[:, :2], atol=1e-5)
            assert run.indices.tolist() == np.argsort(-rows, axis=1)[:, :2].tolist()
    assert found["hybrid"].cost["bytes"] == 16 * 4 + lexical.bytes_a_passage > found["iem"].cost["bytes"] == 16 * 4


def test_bm25_finds_what_shares_a_term() -> None:
    found = search([bm25_scorer("bm25", QUERIES, PASSAGES)], ["q", "r"], list("abc"))
    assert names_of(found["bm25"].runs[0]) == [["a", "c"], ["c", "a"]]


def test_scores_that_are_no_numbers_are_named_with_system_and_query() -> None:
    def rows(some: slice, _: object) -> np.ndarray:
        return np.array([[1.0], [np.nan]], np.float32)[some]

    with pytest.raises(InputError, match="broken: expected finite scores, .* for 1 of 2 queries, such as 'r'"):
        search([Scorer("broken", rows)], ["q", "r"], ["a"])


def test_student_mrr(student: D2LLM) -> None:
    texts = ["open the file", "close the socket of x y", "z", "read a b c"]
    found = student_mrr(student, Validation.from_examples([Example(text, text) for text in texts]))
    # A warm student ranks by distance, and no text is nearer to a text than itself.
    assert found == {"mrr": 1.0, "mrr_cosine": 1.0}


def test_a_second_stage_judges_candidates_alone_and_leaves_the_rest_behind_them() -> None:
    first = Run.of_mapping({"q": {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0}, "r": {"b": 1.0}, "s": {}})
    asked: list[tuple[str, str]] = []

    def judge(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        asked.extend(zip(queries, passages, strict=True))
        return np.array([ord(passage[0]) for passage in passages], np.float32)

    texts = {name: f"{name} text" for name in "abcdqrs"}
    run = rerank(judge, Found((first,)), texts, texts, candidates=2).runs[0]
    assert asked == [("q text", "a text"), ("q text", "b text"), ("r text", "b text")]
    assert names_of(run) == [["b", "a", "c", "d"], ["b"], []]
    assert run.scores[0, 1] > run.scores[0, 2] == run.scores[0, 3] and run.found().tolist() == [4, 1, 0]
    with pytest.raises(InputError, match="second stage: expected finite scores, got NaN or infinity for 1 of 1"):
        rerank(lambda q, p: np.full(len(q), np.nan), Found((Run.of_mapping({"r": {"b": 1.0}}),)), texts, texts)


def test_a_line_up_has_every_system_and_a_teacher_over_any_first_stage(student: D2LLM) -> None:
    teacher = LongestFirst()
    systems = parse_systems(["bm25,untrained,cosine", "iem", "hybrid,teacher"])
    lineup = Lineup(systems, (("student", student),), teacher, ("bm25", "hybrid"))  # type: ignore[arg-type]
    found = find_all(lineup, COLLECTION, candidates=3)
    assert list(found) == [
        "BM25",
        "untrained LLM, mean-pool cosine",
        "student cosine",
        "student IEM",
        "student IEM + 0.2 BM25",
        "teacher on BM25's best 3",
        "teacher on student IEM + 0.2 BM25's best 3",
    ]
    assert names_of(found["teacher on BM25's best 3"].runs[0]) == [["c", "a"], ["c", "a"]]
    assert names_of(found["teacher on student IEM + 0.2 BM25's best 3"].runs[0]) == [["c", "a", "b"]] * 2
    assert set(teacher.asked) == {(query, passage) for query in QUERIES for passage in PASSAGES}
    assert all(set(each.cost) == {"encode_ms", "search_ms", "bytes"} for each in found.values())


@pytest.mark.parametrize(("asked", "named"), [(None, "student IEM + 0.3 BM25"), (0.5, "student IEM + 0.5 BM25")])
def test_a_hybrid_weighs_bm25_as_its_student_does_unless_told(base_model: str, asked: float | None, named: str) -> None:
    student = D2LLM.create(base_model, iem_hidden=16, bm25_weight=0.3)
    lineup = Lineup(parse_systems(["hybrid"]), (("student", student),), None, ("hybrid",), bm25_weight=asked)
    assert list(find_all(lineup, COLLECTION)) == [named]


def test_models_of_sentence_transformers_are_loaded_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def encode_query(self, texts: list[str], convert_to_numpy: bool) -> np.ndarray:
            return np.array([[1.0, 0.0] if text.startswith("open") else [0.0, 1.0] for text in texts])

        encode_document = encode_query

        def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
            return np.array([-len(passage) for _, passage in pairs], np.float32)

    there = types.SimpleNamespace(SentenceTransformer=Model, CrossEncoder=Model)
    monkeypatch.setitem(sys.modules, "sentence_transformers", there)
    lineup = Lineup(parse_systems(["Mini=st:some/model,cross:other/judge"]), first_stages=("st",))
    found = find_all(lineup, COLLECTION, candidates=2)
    assert list(found) == ["Mini", "judge on Mini's best 2"]
    assert names_of(found["Mini"].runs[0]) == [["a", "b", "c"], ["b", "c", "a"]]
    assert names_of(found["judge on Mini's best 2"].runs[0]) == [["b", "a", "c"], ["b", "c", "a"]]
    # A run of others is a row, and a first stage.
    kept = {"kept": Found((Run.of_mapping({"q": {"c": 2.0, "b": 1.0}}),))}
    lineup = Lineup(parse_systems(["cross:other/judge"]), first_stages=("kept",), runs=("kept",))
    found = find_all(lineup, COLLECTION, runs=kept)
    assert list(found) == ["judge on kept's best 3", "kept"]
    assert names_of(found["judge on kept's best 3"].runs[0]) == [["b", "c"]]
    stray = {"kept": Found((Run.of_mapping({"q": {"c": 2.0, "z": 1.0}}),))}
    with pytest.raises(InputError, match="first stage: expected queries and passages of the data, got 1 that it lacks"):
        find_all(lineup, COLLECTION, runs=stray)
    monkeypatch.setattr(Model, "predict", lambda self, pairs: np.zeros((len(pairs), 3)))
    with pytest.raises(InputError, match=r"cross-encoder: expected one score a pair, got \(2, 3\) for 2 pairs"):
        find_all(lineup, COLLECTION, runs=kept)
