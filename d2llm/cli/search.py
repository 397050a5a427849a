"""d2llm search."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2llm.cli.options import load_student, load_teacher, or_shipped, read_queries, read_token
from d2llm.errors import FormatError, InputError, shown
from d2llm.files import parse_json
from d2llm.serve.client import ask

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
    filters: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help='What metadata a passage must have, as JSON: {"year": {"gte": 2020}, "lang": ["en", "de"]}.',
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Tuned teacher that orders the best ten anew, together with the search: a folder, or shipped. "
            "It reads every pair: seconds a question on a CPU."
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="asym: does the passage answer the query; sym: do they say the same.")
    ] = "asym",
    lines: Annotated[int, typer.Option(min=0, help="Lines of each passage to print; 0 for all.")] = 3,
    explain: Annotated[bool, typer.Option(help="Show by which measures each was found, and at what rank.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rank, id, score and text as JSON.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Ask a server (d2llm serve), in which model and index are loaded already.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that the server asks for.")] = None,
) -> None:
    """Find the passages that answer a question.

    \b
    Examples:
      d2llm search parse a date from a string
      d2llm search "what is a walrus?" --index corpus.index --model student -k 3
      d2llm search remove a folder with all that is in it --mode bm25 --json
      d2llm search turn a text into a date --teacher shipped
      d2llm search parse a date --url http://127.0.0.1:8000
      d2llm search walrus --index corpus.index --model student --filter '{"lang": "en"}'
      d2llm search --queries questions.txt --index corpus.index --model student > found.jsonl
    """
    if bool(words) == (queries is not None):
        raise InputError("arguments: expected either QUERY or --queries, got " + ("both" if words else "neither"))
    asked = read_queries(queries) if queries is not None else [" ".join(words or ())]
    options: dict[str, Any] = {"task": task, "mode": mode, "recall": recall, "exact": exact, "explain": explain}
    options["filters"] = None if filters is None else _filters(filters)
    if url is not None:
        if index is not None or model is not None or channel or teacher is not None:
            raise InputError(
                "--url: expected no --index, --model, --channel or --teacher, which are the server's, got one"
            )
        token = None if token_file is None else read_token(token_file)
        found = [ask(url, {"query": query, "k": k, **options}, token) for query in asked]
    else:
        opened = _open(index, model)
        options |= {"channels": channel or (), "candidates": candidates}
        if teacher is None:
            hits = opened.search(asked, k, **options)
        else:
            from d2llm.last_stage import JUDGED, reorder

            judge = load_teacher(None, or_shipped(teacher, "teacher"), None)
            # It is given what it may bring up from below the k-th.
            hits = reorder(judge, asked, opened.search(asked, max(k, JUDGED), **options), task)
        found = [[asdict(hit) for hit in each[:k]] for each in hits]
    if queries is not None:
        for query, each in zip(asked, found, strict=True):
            typer.echo(json.dumps({"query": query, "hits": each}, ensure_ascii=False))
    elif as_json:
        typer.echo(json.dumps(found[0], indent=2, ensure_ascii=False))
    else:
        _show(found[0], lines)


def _filters(text: str) -> dict[str, Any]:
    try:
        filters = parse_json(text)
    except FormatError as error:
        raise InputError(f"--filter: {error}, in {shown(text)}") from None
    if not isinstance(filters, dict):
        raise InputError(f"--filter: expected a JSON object of fields and what they must hold, got {shown(text)}")
    return filters


def _show(hits: list[dict[str, Any]], lines: int) -> None:
    for hit in hits:
        ranks = "".join(f"  {measure} {rank}" for measure, rank in (hit["ranks"] or {}).items())
        typer.secho(f"{hit['rank']:>3}  {hit['score']:9.3f}  {hit['id']}{ranks}", bold=True)
        if hit.get("metadata"):
            typer.echo(f"     {json.dumps(hit['metadata'], ensure_ascii=False)}")
        for line in _excerpt(hit["text"] or "", lines):
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
