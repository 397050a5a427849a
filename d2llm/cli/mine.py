"""d2llm mine."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.options import Format, Seed, load_student, read_passages
from d2llm.errors import InputError


def mine(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Examples: queries with their positive passages.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="JSON lines to write, with hard negatives.")],
    corpus: Annotated[
        Path | None,
        typer.Option(help="Passages to draw from (.jsonl with text, or a passage a line); by default those of IN."),
    ] = None,
    method: Annotated[str, typer.Option(help="bm25, vectors or both; the latter two need --model.")] = "bm25",
    k: Annotated[int, typer.Option(help="Negatives an example.")] = 8,
    seed: Seed = 0,
    model: Annotated[Path | None, typer.Option(help="Student whose embeddings find the negatives.")] = None,
    bm25_top: Annotated[int, typer.Option(help="How many of BM25's best to draw from.")] = 10,
    vector_top: Annotated[int, typer.Option(help="How many of the vectors' best to draw from.")] = 100,
    margin: Annotated[
        float | None,
        typer.Option(help="Draw nothing nearer to a query than its positive less this cosine; needs --model."),
    ] = None,
    fill: Annotated[bool, typer.Option(help="Draw random passages where too few hard ones are found.")] = True,
    format: Format = "auto",
) -> None:
    """Give every query hard negatives.

    Those are passages that look right to a search, and are not the query's positives.

    \b
    Examples:
      d2llm mine pairs.jsonl train.jsonl
      d2llm mine pairs.tsv train.jsonl --corpus corpus.jsonl --k 8 --seed 1
      d2llm mine pairs.jsonl train.jsonl --method both --model student --margin 0.05
    """
    from d2llm.data.importers import read_any
    from d2llm.data.jsonl import write_examples
    from d2llm.mining import METHODS, mine_negatives, student_vectors

    if method not in METHODS:
        raise InputError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method != "bm25" and model is None:
        raise InputError(f"--model: expected a student's folder for --method {method}, got none")
    examples = read_any(source, format)
    passages = read_passages(corpus, examples)
    if margin is not None:
        passages = list(dict.fromkeys([*passages, *(example.positive for example in examples)]))
    queries, vectors = None, None
    if method != "bm25" and model is not None:
        queries, vectors = student_vectors(load_student(model), examples, passages)
    mined = mine_negatives(
        examples,
        passages,
        k,
        method,
        bm25_top=bm25_top,
        vector_top=vector_top,
        margin=margin,
        fill=fill,
        seed=seed,
        query_vectors=queries,
        passage_vectors=vectors,
    )
    count = write_examples(target, mined)
    short = sum(len(example.negatives) < k for example in mined)
    note = f"; {short} of them have fewer than {k} negatives, since the corpus offers no more" if short else ""
    typer.echo(f"{target}: {count} examples{note}")
