"""d2llm index."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2llm.cli.options import load_student, read_queries, share_of
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.metadata import Metadata


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL CORPUS] PATH",
            help="Student, passages and index; PATH alone for --delete, --compact, --export and --verify.",
        ),
    ],
    append: Annotated[bool, typer.Option("--append", help="Add the passages to the index at PATH.")] = False,
    upsert: Annotated[
        bool, typer.Option("--upsert", help="Add the passages; those whose id is there replace what has it.")
    ] = False,
    delete: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Remove this passage; may be repeated.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Free the space of what is deleted, put small segments together.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the surrogate's vectors and ids, for any vector database."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its SHA-256.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index of other content.")] = False,
    dtype: Annotated[str, typer.Option(help="Stored number type: bfloat16, float16, float32 or int8.")] = "bfloat16",
    keep_vectors: Annotated[bool, typer.Option(help="Also store what search --mode cosine needs.")] = True,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Encode passages beyond the student's limit as a whole, in windows."),
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Queries, one a line, to fit the surrogate of a large corpus to; by default first sentences."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What finds a large corpus's candidates: scan, or flat, ivf or hnsw of faiss.")
    ] = "scan",
    field: Annotated[
        list[str] | None,
        typer.Option(help='Keep this key of a row as metadata; may be repeated. By default all under "metadata".'),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Most texts encoded at a time; by default their tokens decide.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Encode the I-th of N shares of the corpus only; call again without it when all are there. torchrun "
            "says it by itself.",
        ),
    ] = None,
    torch_compile: Annotated[
        bool, typer.Option("--torch-compile", help="Compile the LLM first: for many thousand passages.")
    ] = False,
    int8_encoder: Annotated[
        bool, typer.Option("--int8-encoder", help="Encode by linear layers in int8: faster on a CPU, a little rougher.")
    ] = False,
) -> None:
    """Make a corpus searchable, or change an index.

    A build that was stopped goes on when called again.

    \b
    CORPUS is .jsonl with "text" and perhaps "id", "title" and "metadata", or a passage a line, or - for JSON lines from
    standard input; it is read as it is encoded. A passage without an id is called FILE:LINE.
    Examples:
      d2llm index student corpus.jsonl corpus.index
      d2llm index student corpus.jsonl corpus.index --field lang --field year
      zcat corpus.jsonl.gz | d2llm index student - corpus.index
      torchrun --nproc-per-node 4 -m d2llm.cli index student corpus.jsonl corpus.index
      d2llm index student more.jsonl corpus.index --append
      d2llm index student notes.txt corpus.index --upsert
      d2llm index corpus.index --delete doc7 --delete doc8
      d2llm index corpus.index --export vectors
      d2llm index corpus.index --verify
    """
    from d2llm.data.jsonl import read_documents
    from d2llm.data.rows import STDIN
    from d2llm.index import Index, build_share
    from d2llm.index.intake import check_passages

    if sum((append, upsert, delete is not None, compact, export is not None, verify, overwrite)) > 1:
        raise InputError(
            "options: expected one of --append, --upsert, --delete, --compact, --export, --verify and --overwrite, "
            "got several"
        )
    if windows and (append or upsert):
        raise InputError("--windows: expected a new index, got one to add to; it goes on as it was built")
    if delete is not None or compact or export is not None or verify:
        (path,) = _arguments(paths, 1, "PATH alone with --delete, --compact, --export or --verify")
        opened = Index.open(path, verify=verify)
        if delete is not None:
            opened.delete(delete)
        if compact:
            opened.compact()
        if export is not None:
            opened.export_surrogate(export)
        typer.echo(f"{path}: {len(opened)} passages" + (", every file as it was written" if verify else ""))
        return
    model, corpus, path = _arguments(paths, 3, "MODEL CORPUS PATH")
    share = share_of(shard)
    if share is not None and (append or upsert or queries is not None or corpus == STDIN):
        raise InputError(
            "--shard: expected a new index of a file, without --append, --upsert and --queries, which are for the call "
            "that joins the shares"
        )

    def passages() -> "Iterator[tuple[str, str, Metadata]]":
        return read_documents(corpus, prefix=f"{corpus.name}:", fields=field)

    # A file's faults are told at once, not when hours of encoding have come to them.
    if corpus != STDIN:
        check_passages(passages())
    student = load_student(model)
    if torch_compile:
        student.compile_encoder()
    if int8_encoder:
        student.quantize_encoder()
    if share is not None:
        count = build_share(
            student,
            passages(),
            path,
            share,
            dtype=dtype,
            keep_vectors=keep_vectors,
            batch_size=batch_size,
            overwrite=overwrite,
            windows=windows,
        )
        number, of = share
        typer.echo(
            f"{path}: share {number + 1} of {of}, {count} passages; next, with all shares: the same, in one process"
        )
        return
    if append or upsert:
        opened = Index.open(path, student)
        opened.append(passages(), batch_size=batch_size, upsert=upsert)
    else:
        opened = Index.build(
            student,
            passages(),
            path,
            dtype=dtype,
            keep_vectors=keep_vectors,
            batch_size=batch_size,
            overwrite=overwrite,
            queries=None if queries is None else read_queries(queries),
            windows=windows,
            engine=engine,
        )
    typer.echo(f"{path}: {len(opened)} passages; next: d2llm search QUERY --index {path} --model {model}")


def _arguments(paths: list[Path], count: int, expected: str) -> list[Path]:
    if len(paths) != count:
        raise InputError(f"arguments: expected {expected}, got {' '.join(map(str, paths))}")
    return paths
