"""The command line. Commands import what is heavy inside themselves, so that ``d2llm --help`` answers at once."""

import importlib.metadata
import os
from typing import Annotated

import typer

from d2llm.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    index,
    mine,
    mteb,
    search,
    serve,
    teach,
    train,
    tune_search,
)
from d2llm.cli.failures import GuardedGroup

_HELP = """Semantic search with the judgement of an LLM at the cost of a bi-encoder.

\b
See it work:          d2llm demo
Search something:     d2llm search parse a date from a string
Is all in place?      d2llm doctor
How fast is it here?  d2llm bench

\b
On your own data (JSON lines with "query" and "positive"):
  d2llm mine pairs.jsonl train.jsonl --k 8                 find hard negatives
  d2llm teach tune train.jsonl --out teacher               teach an LLM to judge
  d2llm teach score train.jsonl --adapter teacher --out scores.safetensors
  d2llm train run.yaml data.teacher=scores.safetensors     distil it into a student
  d2llm eval student test.jsonl                            compare with BM25 and others
  d2llm index student corpus.jsonl corpus.index            make a corpus searchable
  d2llm search my question --index corpus.index --model student
  d2llm serve --index corpus.index --model student         to clients of OpenAI, Cohere, TEI

Every command explains itself: d2llm COMMAND --help.
"""

app = typer.Typer(
    cls=GuardedGroup,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"d2llm {importlib.metadata.version('d2llm')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("d2llm, not installed: run from its source")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    # Advice of transformers to its own callers is no news to someone at a command line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # So is every start and stop of torch's profiler, which counts memory; it asks once, when torch is loaded.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


app.command()(demo.demo)
app.command()(mine.mine)
app.add_typer(data.app, name="data")
app.add_typer(teach.app, name="teach")
app.command()(train.train)
app.command("eval")(evaluate.evaluate)
app.command()(mteb.mteb)
app.add_typer(export.app, name="export")
app.command()(index.index)
app.command()(search.search)
app.command("tune-search")(tune_search.tune_search)
app.command()(serve.serve)
app.command()(bench.bench)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command line: exit code 0; 2 for an error that the user can mend; 130 when stopped; 1 otherwise."""
    app(prog_name="d2llm")
