"""d2llm mteb."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2llm.cli.options import load_student, or_shipped
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.data.beir import Collection

#: What may stand before local data, for the kind of task.
_KINDS = ("ir", "rerank", "sts", "nli")
_WAYS = ("exact", "iem", "hybrid", "bm25", "cosine")


def mteb(
    model: Annotated[Path, typer.Argument(help="Folder of a student; shipped: the package's own.")],
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="Tasks and benchmarks of MTEB by name, or data at hand: [KIND:]PATH with KIND ir (by default; as in "
            "d2llm eval), rerank, sts or nli.",
        ),
    ],
    search: Annotated[
        str,
        typer.Option(
            help="How retrieval searches: exact, as MTEB does it; iem, hybrid, bm25 or cosine in an index on the disk."
        ),
    ] = "exact",
    name: Annotated[str, typer.Option(help="Name of the model in MTEB's results, as organisation/model.")] = "",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of MTEB's results; what it has is not measured again.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure.")] = None,
) -> None:
    """Measure a student by MTEB's tasks, or by its metrics on data at hand.

    MTEB fetches its own tasks' data from the Hugging Face hub.

    \b
    Examples:
      d2llm mteb student NFCorpus SciFact STSBenchmark --cache results
      d2llm mteb student sts:stsb.tsv nli:pairs.tsv rerank:test.jsonl scifact/
      d2llm mteb student "MTEB(eng, v2)" --search iem --json results.json
    """
    from d2llm.requirements import require

    require("mteb", "mteb")
    import mteb as package

    from d2llm.files import write_json
    from d2llm.integrations.mteb import D2LLMEncoder, D2LLMSearch

    if search not in _WAYS:
        raise InputError(f"--search: expected one of {', '.join(_WAYS)}, got {search!r}")
    # Faulty names and data are found before the model is loaded, which takes longer.
    chosen = [task for each in tasks for task in _tasks(each)]
    for about in (task.metadata for task in chosen):
        if about.modalities != ["text"]:
            raise InputError(f"TASK: expected tasks of texts, got {about.name} of {' and '.join(about.modalities)}")
    student = load_student(or_shipped(model, "student"))
    name = name or f"d2llm/{model.resolve().name}{'' if search == 'exact' else f'-{search}'}"
    measured = D2LLMEncoder(student, name) if search == "exact" else D2LLMSearch(student, name, search)
    kept = None if cache is None else package.ResultCache(cache_path=cache)
    results = []
    for task in chosen:
        found = package.evaluate(measured, task, cache=kept, co2_tracker=False).task_results[0].scores
        rows = [row for split in found.values() for row in split]
        main = sum(row["main_score"] for row in rows) / len(rows)
        about = task.metadata
        results.append({"task": about.name, "type": about.type, "metric": about.main_score, "main_score": main})
        typer.echo(f"{about.name:32}  {about.type:20}  {about.main_score:16}  {main:.4f}")
        results[-1]["scores"] = found
        if json_file is not None:
            write_json(json_file, results)


def _tasks(name: str) -> list[Any]:
    """The tasks that an argument stands for: local data, a task or a benchmark.

    Raises:
        InputError: for a name that is none of them.
    """
    import mteb as package

    kind, colon, path = name.partition(":")
    if colon and kind in _KINDS:
        return [_local(kind, Path(path))]
    if Path(name).exists():
        return [_local("ir", Path(name))]
    try:
        return [package.get_task(name)]
    except KeyError as error:
        unknown = str(error.args[0])
    try:
        return list(package.get_benchmark(name).tasks)
    except KeyError:
        raise InputError(f"TASK: expected a task or benchmark of MTEB, or a path, got {name!r}; {unknown}") from None


def _local(kind: str, path: Path) -> Any:
    """A task of local data, named by its file.

    Raises:
        D2LLMError: if the data are absent or malformed.
    """
    from d2llm.data.pairs import read_pairs
    from d2llm.evaluation.collection import read_collection
    from d2llm.integrations.mteb import pair_task, retrieval_task

    name = re.sub(r"\W+", "-", path.resolve().stem)
    if kind in ("sts", "nli"):
        return pair_task(read_pairs(path, kind), name, kind)
    collection, _ = read_collection(path)
    return retrieval_task(collection, name, _candidates(path, collection) if kind == "rerank" else None)


def _candidates(path: Path, collection: "Collection") -> dict[str, list[str]]:
    """Ids of what stands beside a query: the passages of its examples or, in a folder, what is judged for it."""
    from d2llm.data.example import text_id
    from d2llm.data.importers import read_any

    if path.is_dir():
        return {query: list(row) for query, row in collection.qrels.items()}
    found: dict[str, dict[str, None]] = {}
    for example in read_any(path):
        found.setdefault(text_id(example.query), {}).update(dict.fromkeys(map(text_id, example.passages)))
    return {query: list(ids) for query, ids in found.items()}
