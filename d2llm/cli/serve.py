"""d2llm serve."""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.options import or_shipped, read_token
from d2llm.errors import InputError

#: Of torch and of oneDNN on CPUs, read at the first product: how many shapes a product is kept ready for. Batches of a
#: server have ever other shapes, and the 1,024 that are kept otherwise take hundreds of megabytes, and save nothing.
_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def serve(
    index: Annotated[
        Path | None, typer.Option(help="Index to search; by default the Python standard library, unless --model.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Student; by default the shipped one.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Tuned teacher that orders the best ten anew for searches that ask for it: a folder, or shipped. "
            "Every worker has one of its own."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name under which clients ask for the model.")] = "d2llm",
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that share the index's files in memory, each with a student of its own."),
    ] = 1,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that clients must send.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a token.")] = False,
    writable: Annotated[
        bool, typer.Option("--writable", help="Let clients with the token add and remove passages.")
    ] = False,
) -> None:
    """Serve embeddings, re-ranking and search over HTTP, with a page to search on.

    Clients of OpenAI, Cohere, Jina, TEI and vLLM speak to it as they are.

    \b
    Examples:
      d2llm serve
      d2llm serve --index corpus.index --model student
      d2llm serve --teacher shipped
      d2llm serve --host 0.0.0.0 --token-file token.txt --index corpus.index --model student
    """
    token = None if token_file is None else read_token(token_file)
    local = _is_local(host)
    if not local and token is None and not insecure:
        raise InputError(f"--host: {host} is open to other machines; expected --token-file, or --insecure beside it")
    if writable and token is None:
        raise InputError("--writable: expected --token-file, since whoever has no token could change the index")
    if writable and index is None:
        raise InputError("--writable: expected --index, the index to change")
    for cache in _CACHES:
        os.environ.setdefault(cache, "8")
    from d2llm.serve.workers import Serving, start
    from d2llm.shipped import STUDENT

    if teacher is not None and index is None and model is not None:
        raise InputError("--teacher: expected --index, whose passages it orders, got --model alone")
    if index is not None and model is None:
        raise InputError(f"--model: expected the student that {index} was built with, got none")
    if index is None and model is None:
        from d2llm.demo.library import open_library

        index = open_library().path
    hosts = ["localhost", "127.0.0.1", "[::1]", "::1"] if local else None
    serving = Serving(model or STUDENT, index, name, token, writable, hosts, or_shipped(teacher, "teacher"))

    def announce(taken: int) -> None:
        typer.echo(f"{name} on http://{host}:{taken}, a page to search on; the interface is at /docs")
        sys.stdout.flush()

    raise typer.Exit(start(serving, host, port, workers, announce))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
