"""d2llm demo."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    model: Annotated[str | None, typer.Option(help="Another LLM: a folder, a hub name or pypi:PACKAGE.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your own pairs instead of the standard library's.")] = None,
    from_scratch: Annotated[
        bool, typer.Option(help="Train the student's encoder here too, not only its interaction module.")
    ] = False,
) -> None:
    """Build a small semantic search, from LLM to results.

    \b
    Examples:
      d2llm demo
      d2llm demo --out results --data my-pairs.jsonl
    """
    from d2llm.demo.run import run_demo

    run_demo(out, model=model, data=data, from_scratch=from_scratch)
