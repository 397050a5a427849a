"""d2llm data: check, convert, split."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.failures import GuardedGroup
from d2llm.cli.options import Format, Seed

app = typer.Typer(
    cls=GuardedGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Look at training data and bring them into the format of this project.",
)

Source = Annotated[
    Path,
    typer.Argument(
        metavar="IN", help="Examples: a file, or a folder: a BEIR collection, or what save_to_disk of datasets wrote."
    ),
]

OfTask = Annotated[str | None, typer.Option("--task", help="Task of the examples, sym or asym, where IN does not say.")]
Corpus = Annotated[Path | None, typer.Option(help="Passages by id, for Tevatron rows, triples of ids and TREC runs.")]
Queries = Annotated[Path | None, typer.Option(help="Queries by id, for triples of ids and TREC runs.")]
OfSplit = Annotated[str, typer.Option("--split", help="Split of a BEIR collection.")]
Scores = Annotated[str, typer.Option(help="What single numbers of passages are: auto, logit, probability or drop.")]
Threshold = Annotated[float | None, typer.Option(help="Least label of a positive pair, for nli and sts.")]


@app.command()
def check(
    source: Source,
    format: Format = "auto",
    task: OfTask = None,
    corpus: Corpus = None,
    queries: Queries = None,
    split: OfSplit = "train",
    threshold: Threshold = None,
) -> None:
    """Read examples as training would, and say what they hold or where they are at fault.

    Up to 20 faults are named by file and line. Files of rows are read a row at a time, so that millions of
    them take no more memory than a few bytes each.

    \b
    Examples:
      d2llm data check train.jsonl
      d2llm data check triples.train.small.tsv --format triples
    """
    from d2llm.data.checking import count
    from d2llm.data.importers import iterate_any

    # Any number may be a logit, and a second pass that tells more is not needed to count.
    examples = iterate_any(
        source, format, split=split, scores="logit", task=task, corpus=corpus, queries=queries, threshold=threshold
    )
    typer.echo(count(examples))


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="JSON lines to write.")],
    format: Format = "auto",
    task: OfTask = None,
    corpus: Corpus = None,
    queries: Queries = None,
    split: OfSplit = "train",
    scores: Scores = "auto",
    threshold: Threshold = None,
) -> None:
    """Write examples of any known format as JSON lines, negatives and scores with them.

    A TREC run becomes what its ranker taught: the first passage of a query is the positive, the others are
    negatives, and the scores stay. Queries and passages are JSON lines with an id, or id, tab and text a line.

    \b
    Examples:
      d2llm data convert pairs.csv train.jsonl
      d2llm data convert scifact train.jsonl --format beir --split train
      d2llm data convert qidpidtriples.tsv train.jsonl --format triples --queries queries.tsv --corpus collection.tsv
      d2llm data convert teacher.run train.jsonl --format trec --queries queries.tsv --corpus collection.tsv
    """
    from d2llm.data.importers import iterate_any
    from d2llm.data.jsonl import write_examples

    examples = iterate_any(
        source, format, split=split, scores=scores, task=task, corpus=corpus, queries=queries, threshold=threshold
    )
    count = write_examples(target, examples)
    typer.echo(f"{target}: {count} examples; next: d2llm data check {target}")


@app.command("split")
def part(
    source: Source,
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="JSON lines to write: what is left to train on.")],
    held_out: Annotated[Path, typer.Argument(metavar="HELD_OUT", help="JSON lines to write: what is held out.")],
    share: Annotated[float, typer.Option(help="Share of each task's examples to hold out, 500 of it at most.")] = 0.1,
    seed: Seed = 0,
    format: Format = "auto",
) -> None:
    """Hold examples out, disjoint by text from the others, as a run without validation data does by itself.

    \b
    Example:
      d2llm data split pairs.jsonl train.jsonl held_out.jsonl --share 0.05 --seed 1
    """
    from d2llm.data.importers import open_any
    from d2llm.data.jsonl import write_examples
    from d2llm.data.split import split
    from d2llm.errors import InputError

    if not 0 < share < 1:
        raise InputError(f"--share: expected a share above 0 and below 1, got {share}")
    parts = split(open_any(source, format), share, seed)
    # First what may be read from IN while it is written, and last what is held in memory: HELD_OUT may be IN itself.
    for target, examples in ((train, parts.train), (held_out, parts.held_out)):
        typer.echo(f"{target}: {write_examples(target, examples)} examples")
