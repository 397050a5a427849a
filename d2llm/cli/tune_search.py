"""d2llm tune-search."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.options import load_student
from d2llm.errors import InputError


def tune_search(
    model: Annotated[Path, typer.Argument(help="Student that the index was built with.")],
    index: Annotated[Path, typer.Argument(help="Index to search.")],
    queries: Annotated[Path, typer.Argument(help='Queries: .jsonl with "id" and "text", or one a line.')],
    qrels: Annotated[Path, typer.Argument(help="Judgements: query 0 passage grade a line, as trec_eval reads them.")],
    metric: Annotated[str, typer.Option(help="What chooses: ndcg@10, mrr, recall@100, ...")] = "ndcg@10",
    within: Annotated[float, typer.Option(help="How much of it speed may cost.")] = 0.01,
    task: Annotated[str, typer.Option(help="asym or sym.")] = "asym",
    write: Annotated[
        bool, typer.Option("--write", help="Keep the weight of BM25 that was chosen in the index.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of quality against milliseconds; needs matplotlib.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the table as JSON.")] = None,
) -> None:
    """Measure ways to search on your own queries, and choose one.

    \b
    Every mode, weight of BM25, channel and number of candidates that the index can be searched with; the fastest is
    chosen that is at most --within below the best. Report its quality on other queries than these.
    Example:
      d2llm tune-search student corpus.index queries.jsonl qrels.trec --write
    """
    from d2llm.data.jsonl import read_corpus
    from d2llm.evaluation.trec import read_qrels
    from d2llm.evaluation.tuning import tune_search
    from d2llm.index import Index

    if within < 0:
        raise InputError(f"--within: expected 0 or more, got {within}")
    asked, judged = dict(read_corpus(queries)), read_qrels(qrels)
    opened = Index.open(index, load_student(model))
    tuned = tune_search(opened, asked, judged, metric=metric, within=within, task=task)
    table, chosen = tuned.table(), tuned.chosen
    typer.echo(table.to_text())
    if json_path is not None:
        table.save(json_path)
    if plot is not None:
        from d2llm.evaluation.picture import draw_costs

        draw_costs(table, metric, plot)
    options = "".join(f" --channel {channel}" for channel in chosen.channels)
    options += f" --candidates {chosen.candidates}" if chosen.channels else " --exact"
    typer.echo(f"chosen: {chosen}: d2llm search QUERY --index {index} --model {model} --mode {chosen.mode}{options}")
    if write and chosen.mode == "hybrid":
        opened.keep_bm25_weight(chosen.weight)
        typer.echo(f"{index}: BM25 weighs {chosen.weight:g} from now on")
