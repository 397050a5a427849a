"""d2llm search."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2llm.cli.options import load_student, read_queries
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.index import Index


def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY...]", help="The question; quotes are optional.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Questions, one a line; what is found is printed as a JSON object a line.")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Index to search; by default the Python standard library.")] = None,
    model: Annotated[Path | None, typer.Option(help="Student that the index was built with.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many passages.")] = 5,
    mode: Annotated[
        str | None,
        typer.Option(help="What ranks: hybrid (the default where there are texts), iem, bm25 or cosine."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Share of the exact best to find where a surrogate chooses what is scored; by default 0.99."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every passage.")] = False,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="Rank only the best candidates by bm25, cosine or surrogate; may be repeated."),
    ] = None,
    candidates: Annotated[int, typer.Option(help="Candidates of each channel.")] = 100,
    task: Annotated[
        str, typer.Option(help="asym: does the passage answer the query; sym: do they say the same.")
    ] = "asym",
    lines: Annotated[int, typer.Option(min=0, help="Lines of each passage to print; 0 for all.")] = 3,
    explain: Annotated[bool, typer.Option(help="Show by which measures each was found, and at what rank.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rank, id, score and text as JSON.")] = False,
) -> None:
    """Find the passages that answer a question.

    \b
    Examples:
      d2llm search parse a date from a string
      d2llm search "what is a walrus?" --index corpus.index --model student -k 3
      d2llm search remove a folder with all that is in it --mode bm25 --json
      d2llm search --queries questions.txt --index corpus.index --model student > found.jsonl
    """
    if bool(words) == (queries is not None):
        raise InputError("arguments: expected either QUERY or --queries, got " + ("both" if words else "neither"))
    asked = read_queries(queries) if queries is not None else [" ".join(words or ())]
    found = _open(index, model).search(
        asked,
        k,
        task=task,
        mode=mode,
        channels=channel or (),
        candidates=candidates,
        recall=recall,
        exact=exact,
        explain=explain,
    )
    if queries is not None:
        for query, hits in zip(asked, found, strict=True):
            typer.echo(json.dumps({"query": query, "hits": [asdict(hit) for hit in hits]}, ensure_ascii=False))
        return
    (hits,) = found
    if as_json:
        typer.echo(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        return
    for hit in hits:
        ranks = "".join(f"  {measure} {rank}" for measure, rank in (hit.ranks or {}).items())
        typer.secho(f"{hit.rank:>3}  {hit.score:9.3f}  {hit.id}{ranks}", bold=True)
        for line in _excerpt(hit.text or "", lines):
            typer.echo(f"     {line}")


def _open(path: Path | None, model: Path | None) -> "Index":
    if path is None:
        if model is not None:
            raise InputError("--index: expected the index that goes with --model, got none")
        from d2llm.demo.library import open_library

        return open_library()
    if model is None:
        raise InputError(f"--model: expected the student that {path} was built with, got none")
    from d2llm.index import Index

    return Index.open(path, load_student(model))


def _excerpt(text: str, count: int) -> list[str]:
    """The first ``count`` lines that are not blank, all of them for 0."""
    filled = [line.rstrip() for line in text.splitlines() if line.strip()]
    return filled if count == 0 or len(filled) <= count else [*filled[:count], "..."]
