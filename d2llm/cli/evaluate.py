"""d2llm eval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2llm.cli.options import Dtype, Format, Templates, load_student, load_teacher
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.data.validation import Validation
    from d2llm.evaluation.compare import Comparison

KINDS = ("ir", "nli", "sts")
_STAGES = ("bm25", "cosine", "iem")


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Examples or a BEIR folder; for nli and sts a table.")],
    kind: Annotated[str, typer.Option(help="ir: retrieval; nli: two classes; sts: graded similarity.")] = "ir",
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of d2llm teach tune, or the adapter in it: a teacher to compare with.")
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="LLM of the adapter; by default the one that it was tuned on.")
    ] = None,
    template: Templates = None,
    dtype: Dtype = "float32",
    candidates: Annotated[int, typer.Option(help="Passages a query that the teacher re-ranks (ir).")] = 10,
    first_stage: Annotated[
        str, typer.Option(help="Whose best passages it re-ranks: bm25, cosine or iem (ir).")
    ] = "iem",
    split: Annotated[str, typer.Option(help="Split of a BEIR folder.")] = "test",
    task: Annotated[
        str | None, typer.Option(help="sym or asym; by default what the data says, sym for nli and sts.")
    ] = None,
    format: Format = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure, unrounded.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Compare a student with BM25 and its teacher.

    The untrained LLM under the student is measured too, all on the same data.

    Retrieval searches all passages of DATA, the positives and the hard negatives of every example.
    Equal scores are ranked against the system. The thresholds of nli are the best on the data itself.

    \b
    Examples:
      d2llm eval student test.jsonl --json results.json
      d2llm eval student test.jsonl --adapter teacher --candidates 10 --first-stage bm25
      d2llm eval student scifact/ --split test
      d2llm eval student pairs.tsv --kind nli
      d2llm eval student stsb.tsv --kind sts --adapter teacher
    """
    if kind not in KINDS:
        raise InputError(f"--kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if first_stage not in _STAGES:
        raise InputError(f"--first-stage: expected one of {', '.join(_STAGES)}, got {first_stage!r}")
    # Faulty data is found before the models are loaded, which takes longer.
    read = _read_retrieval(data, format, split, task) if kind == "ir" else _read_pairs(data, kind)
    student = load_student(model)
    judge = None
    if adapter is not None:
        judge = load_teacher(teacher_model, adapter, template, dtype=dtype)
    if kind == "ir":
        table = _retrieval(read, student, judge, candidates, first_stage)
    else:
        table = _pairs(read, kind, student, judge, task)
    typer.echo(table.to_markdown() if markdown else table.to_text())
    if json_file is not None:
        table.save(json_file)


def _read_retrieval(
    data: Path, format: str, split: str, task: str | None
) -> "tuple[Validation, dict[int, dict[int, int]] | None]":
    """Queries and passages, and the grades of a BEIR folder."""
    from d2llm.data.beir import read_beir
    from d2llm.data.importers import read_any
    from d2llm.data.validation import Validation
    from d2llm.tasks import ASYM

    if not data.is_dir():
        examples = [example for example in read_any(data, format) if task in (None, example.task)]
        return Validation.from_examples(examples), None
    collection = read_beir(data, split)
    row = {name: number for number, name in enumerate(collection.corpus)}
    judged = {name: grades for name, grades in collection.qrels.items() if any(grade > 0 for grade in grades.values())}
    validation = Validation(
        tuple(collection.queries[name] for name in judged),
        tuple(collection.corpus.values()),
        tuple(frozenset(row[name] for name, grade in grades.items() if grade > 0) for grades in judged.values()),
        task or ASYM,
    )
    grades = [{row[name]: grade for name, grade in each.items()} for each in judged.values()]
    return validation, dict(enumerate(grades))


def _read_pairs(data: Path, kind: str) -> Any:
    from d2llm.data.pairs import read_pairs

    return read_pairs(data, kind)


def _retrieval(read: Any, student: Any, judge: Any, candidates: int, stage: str) -> "Comparison":
    from d2llm.evaluation.systems import BM25_ROW, COSINE_ROW, IEM_ROW, side_by_side

    validation, qrels = read
    first_stage = {"bm25": BM25_ROW, "cosine": COSINE_ROW, "iem": IEM_ROW}[stage]
    return side_by_side(validation, student, judge, candidates=candidates, first_stage=first_stage, qrels=qrels)


def _pairs(read: Any, kind: str, student: Any, judge: Any, task: str | None) -> "Comparison":
    from d2llm.evaluation.pair_systems import pairs_side_by_side
    from d2llm.evaluation.pairs import nli_metrics, sts_metrics
    from d2llm.tasks import SYM

    measure = nli_metrics if kind == "nli" else sts_metrics
    return pairs_side_by_side(read.pairs, lambda scores: measure(scores, read.labels), student, judge, task=task or SYM)
