"""d2llm export."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.options import load_student, or_shipped

app = typer.Typer(no_args_is_help=True, help="Write a student for engines that run no Python.")

_Student = Annotated[Path, typer.Argument(metavar="STUDENT", help="Folder of a student; shipped: the package's own.")]
_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to be made.")]


@app.command()
def onnx(student: _Student, folder: _Folder) -> None:
    """Write ONNX graphs of the encoder and of the interaction module, and the tokenizer.

    \b
    Example:
      d2llm export onnx student student-onnx
    """
    from d2llm.export.onnx import export_onnx
    from d2llm.requirements import require

    # What lacks is told before the model is loaded, which takes longer.
    require("onnxscript", "onnx")
    export_onnx(load_student(or_shipped(student, "student")), folder)
    typer.echo(f"{folder}: encoder.onnx, iem-asym.onnx, iem-sym.onnx, tokenizer")


@app.command()
def vespa(
    student: _Student,
    folder: _Folder,
    index: Annotated[
        Path | None,
        typer.Option(help="Index of the passages: fed to Vespa, its surrogate the first phase. Without it, BM25."),
    ] = None,
    task: Annotated[str, typer.Option(help="asym or sym.")] = "asym",
) -> None:
    """Write a schema for Vespa that ranks by the interaction module and, of an index, what is fed.

    \b
    Example:
      d2llm export vespa student application --index corpus.index
      vespa feed application/feed.jsonl
    """
    import json

    from d2llm.export.vespa import feed, write_application
    from d2llm.files import atomic_path
    from d2llm.index import Index

    loaded = load_student(or_shipped(student, "student"))
    opened = None if index is None else Index.open(index, loaded)
    write_application(loaded, folder, opened, task)
    if opened is not None:
        with atomic_path(folder / "feed.jsonl") as target, open(target, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(operation) + "\n" for operation in feed(opened, task=task))
    typer.echo(f"{folder}: schemas/passage.sd, constants{'' if opened is None else ', feed.jsonl'}")
