"""d2llm eval."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2llm.cli.options import Dtype, Format, Seed, Templates, load_student, load_teacher, or_shipped
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.data.beir import Collection
    from d2llm.evaluation.compare import Comparison
    from d2llm.evaluation.lineup import Lineup, System
    from d2llm.evaluation.run import Run

KINDS = ("ir", "nli", "sts")


def evaluate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[[NAME=]MODEL]... DATA",
            help="Students (shipped: the package's own) and what to measure them on: examples, a BEIR or CoSQA folder, "
            "or library for the standard library's held-out docstrings; a table for nli and sts.",
        ),
    ],
    kind: Annotated[str, typer.Option(help="ir: retrieval; nli: two classes; sts: graded similarity.")] = "ir",
    systems: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows, as a list with commas: bm25, untrained, cosine, iem, hybrid, teacher; mean:MODEL, st:MODEL and "
            "cross:MODEL for others, perhaps as NAME=st:MODEL. By default all that need no other model."
        ),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="More passages to search (ir).")] = None,
    qrels: Annotated[Path | None, typer.Option(help="TREC judgements in place of DATA's (ir).")] = None,
    run: Annotated[list[str] | None, typer.Option(help="NAME=FILE: a TREC run as one more row (ir).")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of d2llm teach tune, or the adapter in it: a teacher to compare with.")
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="LLM of the adapter; by default the one that it was tuned on.")
    ] = None,
    template: Templates = None,
    dtype: Dtype = "float32",
    candidates: Annotated[int, typer.Option(help="Passages a query that the teacher or a cross re-ranks (ir).")] = 10,
    first_stage: Annotated[
        list[str] | None,
        typer.Option(help="Whose best passages those re-rank: a system or the name of a run; may be repeated (ir)."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Passages a query that every system gives (ir).")] = 1000,
    metrics: Annotated[
        str | None,
        typer.Option(help="Columns, as a list with commas: ndcg@K, mrr@K, map, recall@K, p@K, judged@K (ir)."),
    ] = None,
    bm25_weight: Annotated[
        float | None, typer.Option(help="What BM25 weighs in the hybrid; by default what the student keeps.")
    ] = None,
    contrast: Annotated[str | None, typer.Option(help="Metric of the differences; by default the first.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Row they are taken from, by default the first; may be repeated.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Resamples of an interval; 10000 for ir, 1000 for nli and sts.")
    ] = None,
    seed: Seed = 0,
    threshold_from: Annotated[
        Path | None, typer.Option(help="Validation table that thresholds are fitted on; without it, none are (nli).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder; by default test, for CoSQA dev.")] = None,
    task: Annotated[
        str | None, typer.Option(help="sym or asym; by default what the data says, sym for nli and sts.")
    ] = None,
    format: Format = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure, unrounded.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs, judgements and every query's metrics (ir).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of quality against cost (ir).")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Compare students with BM25, their teacher and models of others.

    The untrained LLM under the student is measured too, all on the same data.

    Retrieval searches all passages of DATA, the positives and the hard negatives of every example, and those of
    --corpus. Equal scores are ranked against the system. Students of one NAME are seeds of one system. Differences
    have a 95 % paired bootstrap interval and the p-value of a randomisation test.

    \b
    Examples:
      d2llm eval student test.jsonl --corpus corpus.jsonl --json results.json
      d2llm eval student test.jsonl --adapter teacher --candidates 10 --first-stage bm25
      d2llm eval s=seed0 s=seed1 s=seed2 old=student test.jsonl --systems bm25,iem,hybrid
      d2llm eval student scifact/ --systems iem,MiniLM=st:all-MiniLM-L6-v2 --out results
      d2llm eval student pairs.tsv --kind nli --threshold-from validation.tsv
      d2llm eval student stsb.tsv --kind sts --adapter teacher
    """
    from d2llm.evaluation.lineup import Lineup

    *models, last = paths
    if kind not in KINDS:
        raise InputError(f"--kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    of_ir = {"corpus": corpus, "qrels": qrels, "run": run, "out": out, "plot": plot, "metrics": metrics}
    for name, value in of_ir.items() if kind != "ir" else ():
        if value:
            raise InputError(f"--{name}: expected with --kind ir, got it with --kind {kind}")
    if threshold_from is not None and kind != "nli":
        raise InputError(f"--threshold-from: expected with --kind nli, which has thresholds, got it with --kind {kind}")
    rows, stages, judged = _rows(
        systems,
        first_stage,
        bool(models),
        adapter is not None or teacher_model is not None,
        kind,
        tuple(each.partition("=")[0] for each in run or ()),
    )
    how: dict[str, Any] = {"contrast": contrast, "baselines": baseline or (), "seed": seed}
    how |= {} if samples is None else {"samples": samples}
    # Faulty data is found before the models are loaded, which takes longer.
    if kind == "ir":
        read: Any = _read_retrieval(Path(last), corpus, qrels, run or [], depth, split, format, task)
    else:
        read = _read_pairs(Path(last), threshold_from, kind)
    lineup = Lineup(
        rows,
        tuple((name, load_student(folder)) for name, folder in _named(models)),
        load_teacher(teacher_model, or_shipped(adapter, "teacher"), template, dtype=dtype) if judged else None,
        stages,
        tuple(read[2]) if kind == "ir" else (),
        bm25_weight,
    )
    if kind == "ir":
        table = _retrieval(read, lineup, depth, candidates, metrics, how, out)
    else:
        table = _pairs(read, lineup, kind, task, how)
    typer.echo(table.to_markdown() if markdown else table.to_text())
    if json_file is not None:
        table.save(json_file)
    if plot is not None:
        _draw(table, plot, contrast)


def _rows(
    named: list[str] | None,
    stages: list[str] | None,
    students: bool,
    teacher: bool,
    kind: str,
    runs: tuple[str, ...],
) -> "tuple[tuple[System, ...], tuple[str, ...], bool]":
    """The systems, the first stages, and whether there is a teacher to load."""
    from d2llm.evaluation.lineup import check, default_systems, parse_systems

    systems = parse_systems(named) if named else default_systems(students, teacher, kind != "ir")
    there = [system.kind for system in systems if not system.reranks]
    chosen = (
        tuple(stages) if stages else tuple(sorted({"iem", "bm25"} & set(there), reverse=True)[:1]) or tuple(there[:1])
    )
    check(systems, students, teacher, chosen if kind == "ir" else (), runs)
    return systems, chosen, any(system.kind == "teacher" for system in systems)


def _named(models: Sequence[str]) -> list[tuple[str, Path]]:
    """Students by name: that given, else "student" for a single one, else the folder's."""
    result = []
    for model in models:
        name, equals, path = model.partition("=")
        folder = Path(path if equals else model)
        result.append(
            (name if equals else "student" if len(models) == 1 else folder.name, or_shipped(folder, "student"))
        )
    return result


def _read_retrieval(
    data: Path,
    corpus: Path | None,
    qrels: Path | None,
    runs: Sequence[str],
    depth: int,
    split: str | None,
    format: str,
    task: str | None,
) -> "tuple[Collection, str, dict[str, Run]]":
    """Queries, corpus and judgements; their task; runs of others by name."""
    from d2llm.evaluation.collection import read_collection
    from d2llm.evaluation.trec import read_run

    if unnamed := [run for run in runs if not all(run.partition("="))]:
        raise InputError(f"--run: expected NAME=FILE, got {unnamed[0]!r}")
    if depth < 1:
        raise InputError(f"--depth: expected at least 1, got {depth}")
    others = {run.partition("=")[0]: read_run(run.partition("=")[2], depth) for run in runs}
    return *read_collection(data, corpus, qrels, split=split, format=format, task=task), others


def _read_pairs(data: Path, validation: Path | None, kind: str) -> Any:
    """Labelled pairs, and those that thresholds are fitted on."""
    from d2llm.data.pairs import read_pairs

    return read_pairs(data, kind), None if validation is None else read_pairs(validation, kind)


def _retrieval(
    read: "tuple[Collection, str, dict[str, Run]]",
    lineup: "Lineup",
    depth: int,
    candidates: int,
    metrics: str | None,
    how: dict[str, Any],
    out: Path | None,
) -> "Comparison":
    from d2llm.evaluation.find import find_all
    from d2llm.evaluation.measure import measure
    from d2llm.evaluation.metrics import METRICS, check_metrics
    from d2llm.evaluation.output import write_all
    from d2llm.evaluation.scorers import Found

    collection, task, others = read
    columns = check_metrics(METRICS if metrics is None else [name.strip() for name in metrics.split(",")])
    runs = {name: Found((run,)) for name, run in others.items()}
    found = find_all(lineup, collection, task, depth, candidates, runs)
    measured = measure(found, collection.qrels, list(collection.corpus), columns, depth=depth, **how)
    if out is not None:
        write_all(out, found, collection.qrels, measured)
    return measured.table


def _pairs(read: Any, lineup: "Lineup", kind: str, task: str | None, how: dict[str, Any]) -> "Comparison":
    from d2llm.evaluation.measure_pairs import measure_pairs
    from d2llm.evaluation.pair_systems import score_pairs
    from d2llm.tasks import SYM

    test, validation = read
    found = score_pairs(lineup, test.pairs, task or SYM)
    fitted = None
    if validation is not None:
        fitted = (score_pairs(lineup, validation.pairs, task or SYM), validation.labels)
    return measure_pairs(found, test.labels, kind, fitted, **how)


def _draw(table: "Comparison", plot: Path, metric: str | None) -> None:
    from d2llm.evaluation.picture import draw_costs

    draw_costs(table, metric or table.columns[0], plot)
