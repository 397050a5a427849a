"""d2llm teach label."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2llm.cli.endpoint import Concurrency, Endpoint, TokenFile, TokenizerName, endpoint_teacher
from d2llm.cli.options import Adapter, Dtype, Format, NumLayers, Templates, load_student, load_teacher, or_shipped
from d2llm.errors import InputError
from d2llm.shipped import BASE_MODEL

if TYPE_CHECKING:
    from d2llm.teacher.scoring import Judge


def label(
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="Queries, one a line, or .jsonl with text.")],
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Passages, one a line, or .jsonl with text.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write: examples with negatives and scores.")],
    labelled: Annotated[
        Path,
        typer.Option(help="A few labelled queries with passages of CORPUS, which the teacher is calibrated on."),
    ],
    student: Annotated[
        Path | None,
        typer.Option(
            help="Student that finds candidates beside BM25, and judges beside the teacher: a folder, or shipped."
        ),
    ] = None,
    candidates: Annotated[int, typer.Option(help="Passages of a query that the teacher judges.")] = 10,
    positive: Annotated[float, typer.Option(help="Least probability of a positive.")] = 0.5,
    negative: Annotated[float, typer.Option(help="Largest probability of a hard negative.")] = 0.2,
    negatives: Annotated[int, typer.Option(help="Hard negatives of an example at most.")] = 8,
    task: Annotated[str, typer.Option(help="Task of the queries: sym or asym.")] = "asym",
    adapter: Adapter = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Causal LLM; by default the adapter's, or {BASE_MODEL}; with --endpoint its name."),
    ] = None,
    num_layers: NumLayers = None,
    dtype: Dtype = "float32",
    template: Templates = None,
    shards_dir: Annotated[Path | None, typer.Option(help="Folder for judged parts; by default OUT.shards.")] = None,
    format: Format = "auto",
    endpoint: Endpoint = None,
    tokenizer: TokenizerName = None,
    concurrency: Concurrency = 16,
    token_file: TokenFile = None,
) -> None:
    """Label queries that have no labels: a search finds candidates, the teacher judges them.

    A student adds to the teacher's judgement by how much it puts a candidate above the query's others. Probabilities
    are calibrated on the labelled queries, whose candidates are found and judged likewise; what no label calls a
    positive counts as none there. Queries without a positive make no example. What is judged is kept: a call that was
    stopped goes on where it was.

    \b
    Examples:
      d2llm teach label queries.txt corpus.jsonl --labelled few.jsonl --out train.jsonl --adapter teacher
      d2llm teach label queries.txt corpus.jsonl --labelled few.jsonl --out train.jsonl --student student
      d2llm teach label queries.txt corpus.jsonl --labelled few.jsonl --out train.jsonl --positive 0.8 --negative 0.1
    """
    from d2llm.cli.options import of_task, read_passages, read_queries
    from d2llm.data.importers import read_any
    from d2llm.data.jsonl import write_examples
    from d2llm.teacher.calibration import Calibrated, Labelled
    from d2llm.teacher.joint import StudentJudge, joint
    from d2llm.teacher.labelling import Cuts, find_candidates, known, pairs_of
    from d2llm.teacher.labelling import label as run
    from d2llm.teacher.scoring import collect, plan_pairs, score

    cuts = Cuts(positive, negative)
    folder = shards_dir or out.with_name(out.name + ".shards")
    asked = list(dict.fromkeys(read_queries(queries)))
    few = of_task(read_any(labelled, format), task)
    every = [*asked, *(example.query for example in few)]
    passages = list(dict.fromkeys(read_passages(corpus, ())))
    finder = None if student is None else load_student(or_shipped(student, "student"))
    second = None if finder is None else StudentJudge.of(finder, every, passages, task)
    found = find_candidates(every, passages, candidates, [] if second is None else [second.scorer])
    judge: Judge
    if endpoint is None:
        adapter = or_shipped(adapter, "teacher")
        judge = load_teacher(model or (BASE_MODEL if adapter is None else None), adapter, template, num_layers, dtype)
    elif adapter is not None or num_layers is not None:
        raise InputError("--adapter, --num-layers: expected neither with --endpoint, which runs an LLM as it is")
    else:
        judge = endpoint_teacher(
            endpoint, model, tokenizer, template, folder, concurrency=concurrency, token_file=token_file
        )
    table = collect(score(judge, list(plan_pairs(pairs_of(every, found), task)), folder))
    told = known(few, found[len(asked) :])
    decisive = table if second is None else joint(table, second.leads(found), told)
    calibrated = Calibrated.of(Labelled.of(told, decisive))
    typer.echo(calibrated)
    examples, report = run(asked, found[: len(asked)], table, decisive, calibrated.calibration, cuts, negatives, task)
    typer.echo(report)
    if not examples:
        raise InputError(f"--positive: expected a candidate with a probability of at least {positive}, found none")
    count = write_examples(out, examples)
    typer.echo(f"{out}: {count} examples with scores; next: d2llm train base_model=LLM output_dir=DIR data.train={out}")
