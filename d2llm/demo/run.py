"""From a plain LLM to a searchable index: data, teacher, student, comparison, index, answers."""

import copy
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from d2llm.data.docstrings import standard_library_names
from d2llm.data.example import Example
from d2llm.data.validation import Validation
from d2llm.demo.data import DemoData, load_data
from d2llm.demo.encoder import train
from d2llm.demo.judgements import check_sample, complete, rerank_pairs, reranked
from d2llm.demo.library import library_vectors
from d2llm.demo.picture import draw
from d2llm.demo.recipe import RERANKED, DemoRecipe
from d2llm.demo.training import train_phase
from d2llm.evaluation.compare import Comparison, Contrast, compare
from d2llm.evaluation.retrieval import ir_metrics, ir_values
from d2llm.evaluation.significance import Means, difference
from d2llm.evaluation.systems import bm25, iem_scores, mean_pool_cosine
from d2llm.files import atomic_path, write_json
from d2llm.index import Index
from d2llm.shipped import BASE_MODEL, SCORES, STUDENT, STUDENT_MODEL, TEACHER
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity
from d2llm.teacher.model import Teacher
from d2llm.teacher.scores import ScoreTable
from d2llm.training.vectors import TextVectors

#: What the library is asked; each is answered by a function written in Python.
QUESTIONS = ("parse an ISO 8601 date", "wrap a paragraph to a given width", "merge sorted lists")
_HITS = 3
_COLUMNS = ["mrr", "mrr@10", "map", "ndcg@10", "recall@1", "recall@10"]
#: Rows of the table: the student, and what it is held against.
_STUDENT = "student IEM"
_BASELINES = ("base, mean-pool cosine", "student cosine", "student IEM, trained without teacher")


def run_demo(
    out: Path = Path("demo"),
    model: str | None = None,
    data: Path | None = None,
    from_scratch: bool = False,
    recipe: DemoRecipe | None = None,
) -> Comparison:
    """Run the whole demonstration and leave its results in ``out``.

    Args:
        out: folder for the table, the picture, the student and the index.
        model: another LLM as teacher (as it is, without the shipped adapter) and as base of the student.
        data: a JSONL file of examples in place of the standard library.
        from_scratch: train the encoder here too, in place of starting from the shipped student. Always so with another
            model.
        recipe: sizes and rates of the student's training.

    Returns:
        The table.
    """
    started = time.perf_counter()
    recipe = recipe or DemoRecipe()
    base = model or BASE_MODEL
    _say(f"Data: {data or 'docstrings and code of the standard library of this Python'}")
    demo_data = load_data(data)
    held_out = demo_data.held_out
    examples = demo_data.mined(recipe.scored_examples)
    print(
        f"  {len(demo_data.train)} training pairs, {len(held_out.queries)} held-out queries over "
        f"{len(held_out.passages)} candidates, {len(demo_data.library)} passages in all"
    )

    _say(f"Teacher: {base}" + ("" if model else ", tuned by LoRA (shipped adapter)"))
    teacher = Teacher.from_pretrained(base, None if model else TEACHER, dtype=torch.bfloat16)
    table = ScoreTable.load(SCORES) if model is None and SCORES.exists() else None
    lexical = bm25(held_out.queries, held_out.passages)
    _, rerank = rerank_pairs(held_out, lexical, RERANKED)
    if table is not None:
        difference = check_sample(teacher, table, rerank, held_out.task)
        agreement = "none is of these texts" if difference is None else f"a live sample differs by {difference:.4f}"
        print(f"  {len(table)} shipped scores; {agreement}")
    table, left = complete(teacher, table, examples[: recipe.scored_examples], rerank, out / "scores")
    del teacher
    if left:
        print(f"  {left} pairs are not judged; hard negatives among them learn from labels")

    _say(f"Students: {model or STUDENT_MODEL} with LoRA, PMA and IEM")
    shipped = model is None and not from_scratch
    print("  in-batch loss: " + ("shipped" if shipped else "from scratch"))
    student = _start(model, from_scratch, demo_data.train, recipe, out / "runs" / "first")
    print("  embeddings of every text; the encoder is left as it is from here on")
    vectors = _vectors(student, shipped, examples, demo_data)
    twin = copy.deepcopy(student)
    print("  interaction module without the teacher: in-batch loss alone")
    train_phase(twin, recipe.distil, examples, out / "runs" / "without-teacher", vectors=vectors)
    print("  interaction module with the teacher: all five losses")
    losses = train_phase(
        student, recipe.distil, examples, out / "runs" / "with-teacher", teacher=table, vectors=vectors
    )

    _say("Comparison on the held-out queries")
    comparison, ranks = _compare(student, twin, held_out, vectors, lexical, table)
    print(comparison.to_text(_COLUMNS))
    student.save_pretrained(out / "student")
    comparison.save(out / "comparison.json")
    with atomic_path(out / "comparison.md") as temporary:
        temporary.write_text(comparison.to_markdown(_COLUMNS) + "\n", encoding="utf-8")
    write_json(out / "losses.json", losses)
    draw(losses, ranks, out / "demo.png")

    _say(f"Index of all {len(demo_data.library)} passages, and three questions to it")
    embedded = vectors.passages(demo_data.library).numpy()
    names = standard_library_names() if data is None else None
    ids = None if names is None else [names[passage] for passage in demo_data.library]
    index = Index.build(student, demo_data.library, out / "index", ids=ids, vectors=embedded, overwrite=True)
    for question in QUESTIONS if data is None else held_out.queries[: len(QUESTIONS)]:
        print(f"\n  {question}")
        for hit in index.search(question, min(_HITS, len(index)))[0]:
            print(f"    {hit.rank}. {hit.score:7.2f}  {hit.id}: {(hit.text or '').splitlines()[0]}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Table, picture, student and index are in {out}/.")
    command = "d2llm" if shutil.which("d2llm") else Path(sys.executable).with_name("d2llm")
    print("Go on with, on the shipped student, or on the one just trained:")
    print(f'  {command} search "parse an ISO 8601 date"')
    print(f'  {command} search "remove a file" --index {out}/index --model {out}/student')
    return comparison


def _start(model: str | None, from_scratch: bool, pairs: list[Example], recipe: DemoRecipe, folder: Path) -> D2LLM:
    """The student whose interaction module is trained: shipped, or with an encoder that is trained now."""
    if model is not None:
        student = D2LLM.create(model, **recipe.student)
        train_phase(student, recipe.first, pairs, folder)
        return student
    if not from_scratch:
        return D2LLM.from_pretrained(STUDENT)
    shutil.rmtree(folder, ignore_errors=True)
    return train(pairs, folder)


def _vectors(student: D2LLM, shipped: bool, examples: list[Example], data: DemoData) -> TextVectors:
    """Embeddings of every text; those that the shipped student made of the library are shipped too."""
    if not shipped:
        return TextVectors.encode(student, examples, data.held_out.queries, data.library)
    queries = list(dict.fromkeys([*data.held_out.queries, *(example.query for example in examples)]))
    passages = list(dict.fromkeys([*data.library, *(text for example in examples for text in example.passages)]))
    return TextVectors(
        (queries, student.encode(queries, "query", convert_to="torch").cpu()),
        (passages, torch.from_numpy(library_vectors(student, passages))),
    )


def _compare(
    student: D2LLM, twin: D2LLM, held_out: Validation, vectors: TextVectors, lexical: np.ndarray, table: ScoreTable
) -> tuple[Comparison, dict[str, np.ndarray]]:
    """The table, and (Nq,) reciprocal ranks by system."""
    queries, passages = vectors.queries(held_out.queries), vectors.passages(held_out.passages)
    base, layers = student.config.base_model, student.config.num_layers
    judged_scores, judged = reranked(held_out, lexical, RERANKED, table)
    systems = {
        "BM25": lexical,
        _BASELINES[0]: mean_pool_cosine(base, layers, held_out.queries, held_out.passages),
        _BASELINES[1]: cosine_similarity(queries, passages),
        _BASELINES[2]: iem_scores(twin, queries, passages, held_out.task),
        _STUDENT: iem_scores(student, queries, passages, held_out.task),
    }
    if judged.all():
        systems[f"teacher on BM25's best {RERANKED}"] = judged_scores
    qrels = {query: dict.fromkeys(found, 1) for query, found in enumerate(held_out.relevant)}
    rows = compare(systems, lambda scores: ir_metrics(scores, qrels)).rows
    ranks = {name: ir_values(scores, qrels)["mrr"] for name, scores in systems.items()}
    contrasts = (
        Contrast(_STUDENT, other, "mrr", difference(Means(ranks[_STUDENT], ranks[other]))) for other in _BASELINES
    )
    return Comparison(rows, tuple(contrasts)), ranks


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
