"""d2llm data: convert."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.failures import GuardedGroup
from d2llm.cli.options import Format

app = typer.Typer(
    cls=GuardedGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Look at training data and bring them into the format of this project.",
)

Source = Annotated[Path, typer.Argument(metavar="IN", help="Examples: a file, or the folder of a BEIR collection.")]


@app.callback()
def _data() -> None:
    # A group, also while it has one command.
    pass


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="JSON lines to write.")],
    format: Format = "auto",
    task: Annotated[str | None, typer.Option(help="Task of the examples, sym or asym, where IN does not say.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Passages by id, for Tevatron rows and TREC runs.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries by id, for TREC runs.")] = None,
    split: Annotated[str, typer.Option(help="Split of a BEIR collection.")] = "train",
    scores: Annotated[
        str, typer.Option(help="What single numbers of passages are: auto, logit, probability or drop.")
    ] = "auto",
    threshold: Annotated[float | None, typer.Option(help="Least label of a positive pair, for nli and sts.")] = None,
) -> None:
    """Write examples of any known format as JSON lines, negatives and scores with them.

    A TREC run becomes what its ranker taught: the first passage of a query is the positive, the others are
    negatives, and the scores stay. Queries and passages are JSON lines with an id, or id, tab and text a line.

    \b
    Examples:
      d2llm data convert pairs.csv train.jsonl
      d2llm data convert scifact train.jsonl --format beir --split train
      d2llm data convert teacher.run train.jsonl --format trec --queries queries.tsv --corpus collection.tsv
    """
    from d2llm.data.importers import read_any
    from d2llm.data.jsonl import write_examples

    examples = read_any(
        source,
        format,
        task=task,
        corpus=corpus,
        queries=queries,
        split=split,
        scores=scores,
        threshold=threshold,
    )
    count = write_examples(target, examples)
    negatives = sum(len(example.negatives) for example in examples)
    scored = sum(example.scores is not None for example in examples)
    typer.echo(f"{target}: {count} examples with {negatives} negatives, {scored} of them with scores")
