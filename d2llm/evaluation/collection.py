"""What a retrieval table is measured on: queries, a corpus and judgements, from any source there is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d2llm.data.beir import Collection, read_beir
from d2llm.data.cosqa import CODES, read_cosqa
from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.data.example import Example, text_id
from d2llm.data.importers import read_any
from d2llm.data.jsonl import read_corpus
from d2llm.errors import FormatError, InputError
from d2llm.evaluation.trec import read_qrels
from d2llm.tasks import ASYM

#: In place of a file: the held-out docstrings of this Python's standard library over all of its functions.
LIBRARY = "library"


def read_collection(
    data: Path,
    corpus: Path | None = None,
    qrels: Path | None = None,
    *,
    split: str | None = None,
    format: str = "auto",
    task: str | None = None,
) -> tuple[Collection, str]:
    """Queries with what is searched and what is relevant, and their task.

    Args:
        data: a file of examples in any format of :mod:`d2llm.data.importers`, a BEIR or a CoSQA folder, or ``LIBRARY``.
        corpus: more passages to search beside those of ``data`` (:func:`d2llm.data.jsonl.read_corpus`), by their ids.
        qrels: judgements as a TREC file, in place of those of ``data``.
        split: of a folder; by default test, for CoSQA dev.
        format: of a file of examples.
        task: keeps the examples of that task; None takes what the data says, "asym" for folders.

    Raises:
        MissingError: for an absent file.
        FormatError: for a malformed one, and for judgements of queries or passages that are not there.
        InputError: for examples of both tasks, or of none that was asked for.
    """
    if data.name == LIBRARY and not data.exists():
        pairs = standard_library_pairs()
        found = of_examples(hold_out(pairs)[1], {}, list(dict.fromkeys(pair.positive for pair in pairs)))
        known: str = ASYM
    elif data.is_dir():
        is_cosqa = (data / CODES).is_file()
        found = read_cosqa(data, split or "dev") if is_cosqa else read_beir(data, split or "test")
        known = task or ASYM
        found = replace(found, corpus=_joined(found.corpus, _corpus(corpus)))
    else:
        examples = [example for example in read_any(data, format) if task in (None, example.task)]
        tasks = {example.task for example in examples}
        if len(tasks) != 1:
            raise InputError(f"validation examples: expected examples of one task, got {sorted(tasks) or 'none'}")
        found, known = of_examples(examples, _corpus(corpus)), tasks.pop()
    return (found if qrels is None else replace(found, qrels=_qrels(qrels, found))), known


def of_examples(examples: Sequence[Example], corpus: dict[str, str], more: Sequence[str] = ()) -> Collection:
    """Each distinct query over a corpus and the passages of the examples, those of the corpus by its ids.

    Texts that the corpus does not hold, and queries, are called by :func:`d2llm.data.example.text_id`. A text that the
    corpus holds under several ids is right under each of them.
    """
    passages, names = dict(corpus), dict[str, list[str]]()
    for name, text in corpus.items():
        names.setdefault(text, []).append(name)
    for text in [*more, *(passage for example in examples for passage in example.passages)]:
        if text not in names:
            names[text] = [text_id(text)]
            passages[text_id(text)] = text
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for example in examples:
        query = text_id(example.query)
        queries[query] = example.query
        qrels.setdefault(query, {}).update(dict.fromkeys(names[example.positive], 1))
    return Collection(passages, queries, qrels)


def _corpus(path: Path | None) -> dict[str, str]:
    return {} if path is None else dict(read_corpus(path))


def _joined(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    if shared := first.keys() & second.keys():
        raise FormatError(
            f"--corpus: expected other ids than those of the data, got {len(shared)} again, such as {min(shared)!r}"
        )
    return first | second


def _qrels(path: Path, found: Collection) -> dict[str, dict[str, int]]:
    judged = read_qrels(path)
    passages = {passage for row in judged.values() for passage in row}
    for kind, absent in (
        ("queries", judged.keys() - found.queries.keys()),
        ("passages", passages - found.corpus.keys()),
    ):
        if absent:
            raise FormatError(
                f"{path}: expected judgements of {kind} of the data, got {len(absent)} that it lacks, such as "
                f"{min(absent)!r}"
            )
    return judged
