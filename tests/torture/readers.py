"""Every reader of a file: it reads what is there, or refuses it with an error of the package."""

import csv
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from d2llm.cli.options import read_template
from d2llm.data.beir import read_beir
from d2llm.data.example import Example
from d2llm.data.importers import read_any
from d2llm.data.jsonl import read_corpus, read_examples, write_examples
from d2llm.data.pairs import read_pairs
from d2llm.errors import D2LLMError
from d2llm.training.config import build_config, load_config
from tests.torture import worker
from tests.torture.mutate import VALUES, mutated_bytes, mutated_value

#: Characters of a message, which shows 200 of a value, or of each of 20 faults.
_LONGEST_MESSAGE = 20_000

CONFIG = {
    "output_dir": "out",
    "base_model": "m",
    "data": {"train": "t.jsonl", "teacher": {"sym": "a"}, "teacher_header": {"model": "m"}, "validation_share": 0.1},
    "student": {"lora_r": 4, "lora_targets": ["q_proj"], "iem_hidden": 64, "lora_dropout": 0.1, "init": "warm"},
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.01, "schedule": "cosine"},
    "loss": {"alpha": 1.0, "in_batch_form": "mean", "temperature": 0.5},
    "run": {"batch_size": 4, "epochs": 1.5, "seed": 3, "bf16": False, "max_steps": None},
    "mining": {"every_steps": 10, "margin": 0.1},
}
EXAMPLES = [
    {"query": "q", "positive": "p", "negatives": ["n", "m"], "task": "sym", "scores": [[1.5, -1], [0, 2], [3, 4]]},
    {"query": "r é", "positive": "p", "source": {"a": [1]}},
]
CORPUS = [{"id": "a", "text": "one"}, {"_id": "b", "title": "T", "text": "two"}, {"docid": 7, "text": "x", "title": ""}]
FLAG = [{"query": "q", "pos": ["p", "o"], "neg": ["n"], "pos_scores": [1.5, 2], "neg_scores": [-1]}]
ORDERED = [{"anchor": "q", "good": "p", "bad": ["n", "m"], "score": [0.5, 0.25, 0.125]}]
TEVATRON = [{"query_text": "q", "positive_document_ids": ["a"], "negative_document_ids": ["b"]}]
INLINE = [{"query": "q", "positive_passages": [{"title": "T", "text": "p"}], "negative_passages": [{"text": "n"}]}]
PAIRS = "sentence1\tsentence2\tscore\na b\tc\t4.5\nd\te\t1\n"
LABELS = 'premise,hypothesis,label\n"a, b",c,entailment\nd,e,neutral\nf,"g\nh",-\n'
TRIPLES = 'query,positive,negative,other,scores\n"q, r",p,n,"m\nl","[1, 2, 3]"\nq,p,n,,"[1.5, 2]"\n'
TEMPLATE = {"name": "own", "task": "sym", "text": "A {query} B {passage}?", "yes": " yes", "no": " no"}


def refusing(read: Callable[[random.Random, Path], None]) -> worker.Try:
    """A target out of a reader and its checks: an error of the package is a refusal, if its message is not endless."""

    def attempt(generator: random.Random, folder: Path) -> bool:
        try:
            read(generator, folder)
        except D2LLMError as error:
            assert len(str(error)) <= _LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
            return False
        return True

    return attempt


def put(generator: random.Random, path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rows(generator: random.Random, values: list[Any]) -> bytes:
    """JSON lines of the values, mutated as values, as bytes, or both."""
    values = json.loads(json.dumps(values))
    if generator.random() < 0.7:
        row = generator.randrange(len(values))
        values[row] = mutated_value(generator, values[row])
    content = "\n".join(json.dumps(value, ensure_ascii=generator.random() < 0.5) for value in values).encode()
    return mutated_bytes(generator, content) if generator.random() < 0.5 else content


def config(generator: random.Random, folder: Path) -> None:
    values = json.loads(json.dumps(CONFIG))
    for _ in range(generator.randrange(3)):
        values = mutated_value(generator, values)
    content = yaml.safe_dump(values, allow_unicode=True).encode()
    if generator.random() < 0.5:
        content = mutated_bytes(generator, content)
    checked(load_config(put(generator, folder / "c.yaml", content)))


def overrides(generator: random.Random, folder: Path) -> None:
    name = generator.choice([f"{part}.{field}" for part, fields in CONFIG.items() for field in fields])
    text = f"{name}={json.dumps(generator.choice(VALUES))}".encode()
    if generator.random() < 0.5:
        text = mutated_bytes(generator, text)
    checked(load_config(overrides=["output_dir=o", "base_model=m", text.decode("utf-8", "replace")]))


def checked(config: Any) -> None:
    """A configuration that was taken comes back from what it is, can be kept, and has numbers in their ranges."""
    values = asdict(config)
    json.dumps(values)
    numbers = {**values["optimizer"], **values["run"], **values["loss"], "margin": config.mining.margin}
    for name, value in numbers.items():
        assert not isinstance(value, float) or math.isfinite(value), f"{name}: {value}"
    assert 0 <= config.optimizer.betas[0] < 1 > config.optimizer.betas[1] >= 0, config.optimizer.betas
    assert config.run.epochs > 0 and config.optimizer.eps >= 0 and config.optimizer.weight_decay >= 0
    if values["data"]["teacher_header"] == values["data"]["teacher_header"]:  # NaN is not itself.
        assert build_config(values) == config


def template(generator: random.Random, folder: Path) -> None:
    values = mutated_value(generator, dict(TEMPLATE)) if generator.random() < 0.7 else TEMPLATE
    content = mutated_bytes(generator, yaml.safe_dump(values).encode())
    read = read_template(str(put(generator, folder / "t.yaml", content)))
    assert read.yes.strip() and read.no.strip() and len(read.pieces()) == 3


def examples(generator: random.Random, folder: Path) -> None:
    path = put(generator, folder / "e.jsonl", rows(generator, EXAMPLES))
    read = read_examples(path)
    given = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    for example, row in zip(read, given, strict=True):
        negatives = [] if row.get("negatives") is None else row["negatives"]
        assert [example.query, example.positive, list(example.negatives)] == [row["query"], row["positive"], negatives]
        scores = None if row.get("scores") is None else tuple((float(yes), float(no)) for yes, no in row["scores"])
        assert example.scores == scores and example.task == row.get("task", "asym")
    again(read, folder)


def again(read: list[Example], folder: Path) -> None:
    """Examples that were taken can be written and read."""
    write_examples(folder / "again.jsonl", read)
    assert read_examples(folder / "again.jsonl") == read


def corpus(generator: random.Random, folder: Path) -> None:
    path = put(generator, folder / "c.jsonl", rows(generator, CORPUS))
    read = read_corpus(path)
    given = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    for (_, text), row in zip(read, given, strict=True):
        title, body = row.get("title"), row.get("text")
        assert type(title) in (str, type(None)) and type(body) in (str, type(None)), row
        assert text in (body, f"{title} {body or ''}".strip()) and text.strip()
    assert len(dict(read)) == len(read)


def lines(generator: random.Random, folder: Path) -> None:
    path = put(generator, folder / "c.txt", mutated_bytes(generator, "one\n\n two é\r\nthree".encode()))
    assert all(text.strip() for _, text in read_corpus(path))


def beir(generator: random.Random, folder: Path) -> None:
    (folder / "qrels").mkdir(exist_ok=True)
    parts = {
        "corpus.jsonl": b'{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}',
        "queries.jsonl": b'{"_id": "q1", "text": "q"}\n{"_id": "q2", "text": "r"}',
        "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td2\t2\n",
    }
    which = generator.choice(list(parts))
    for name, content in parts.items():
        put(generator, folder / name, mutated_bytes(generator, content) if name == which else content)
    collection = read_beir(folder)
    for query, judged in collection.qrels.items():
        assert query in collection.queries and judged.keys() <= collection.corpus.keys()
    collection.examples()


def tevatron(generator: random.Random, folder: Path) -> None:
    kept = "\n".join(map(json.dumps, CORPUS)).encode()
    put(generator, folder / "corpus.jsonl", rows(generator, CORPUS) if generator.random() < 0.3 else kept)
    given = generator.choice((TEVATRON, INLINE))
    again(read_any(put(generator, folder / "t.jsonl", rows(generator, given)), "tevatron"), folder)


def imported(generator: random.Random, folder: Path) -> None:
    name, given = generator.choice(
        (("flagembedding", FLAG), ("sentence-transformers", ORDERED), ("auto", ORDERED + FLAG))
    )
    again(read_any(put(generator, folder / "i.jsonl", rows(generator, given)), name), folder)


def triples(generator: random.Random, folder: Path) -> None:
    path = put(generator, folder / "t.csv", mutated_bytes(generator, TRIPLES.encode()))
    read = read_any(path, "sentence-transformers")
    table = [row for row in csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")) if any(row)]
    scored = table[0][-1].strip().lower() in ("score", "scores", "label", "labels")
    for example, cells in zip(read, table[1:], strict=True):
        texts = cells[:-1] if scored else cells
        assert [*example.passages] == [texts[1], *filter(None, texts[2:])] and example.query == texts[0]
    again(read, folder)


def pairs(generator: random.Random, folder: Path) -> None:
    name, content, kind = generator.choice((("p.tsv", PAIRS, "sts"), ("p.csv", LABELS, "nli")))
    read = read_pairs(put(generator, folder / name, mutated_bytes(generator, content.encode())), kind)
    assert all(math.isfinite(label) for label in read.labels) and len(read.labels) == len(read.pairs)
    assert all(first.strip() and second.strip() for first, second in read.pairs)


TARGETS: dict[str, worker.Try] = {
    read.__name__: refusing(read)
    for read in (config, overrides, template, examples, corpus, lines, beir, tevatron, imported, triples, pairs)
}
