"""Options that several commands share, and what they stand for."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2llm.errors import FormatError, InputError, MissingError, shown

if TYPE_CHECKING:
    import torch

    from d2llm.data.example import Example
    from d2llm.teacher.model import Teacher
    from d2llm.teacher.templates import Template

Format = Annotated[
    str,
    typer.Option(
        help="Format of the data: auto, d2llm, sentence-transformers, flagembedding, tevatron, beir, nli, sts, triples "
        "(a table without a header) or trec."
    ),
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        help="Prompt of a task: sym-en, asym-en, sym-zh, asym-zh, or a YAML file with name, task, text, yes and no. "
        "Once for each task; by default what the adapter was tuned with, or both English ones.",
    ),
]
NumLayers = Annotated[int | None, typer.Option(help="Keep only the first layers of the LLM.")]
Dtype = Annotated[str, typer.Option(help="Number type of the LLM's weights: float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]

Adapter = Annotated[
    Path | None,
    typer.Option(help="Folder of d2llm teach tune, or the adapter in it; without it, the plain LLM."),
]

Task = Annotated[str | None, typer.Option(help="Only the examples of this task: sym or asym.")]

#: In place of a folder: what the package brings along.
SHIPPED = "shipped"
#: By which torchrun tells each process of a machine its GPU.
_LOCAL_RANK = "LOCAL_RANK"
_TEMPLATE_KEYS = {"name", "task", "text", "yes", "no"}


def torch_dtype(name: str) -> "torch.dtype":
    """A number type by name.

    Raises:
        InputError: for another one than float32, bfloat16 and float16.
    """
    from d2llm.student.configuration import BASE_DTYPES

    if name not in BASE_DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(BASE_DTYPES)}, got {name!r}")
    return BASE_DTYPES[name]


def load_teacher(
    model: str | None,
    adapter: Path | None,
    templates: list[str] | None,
    num_layers: int | None = None,
    dtype: str = "float32",
    query_length: int | None = None,
    passage_length: int | None = None,
) -> "Teacher":
    """A teacher, on the accelerator where there is one.

    Args:
        model: causal LLM by name; None takes what the adapter remembers.
        adapter: folder of a tuning or of its adapter; None judges with the plain LLM.
        templates: names of built-in templates or YAML files; none takes what the adapter remembers, or the English
            ones.
        num_layers: layers kept; None takes what the adapter remembers, or all.
        dtype: number type of the weights, by name.
        query_length, passage_length: most tokens kept of each text; None takes what the adapter remembers, or a
            default.

    Raises:
        D2LLMError: for an unknown name, an absent folder or file, or a malformed template.
    """
    from d2llm.devices import best_device
    from d2llm.teacher.model import Teacher

    teacher = Teacher.from_pretrained(
        model,
        adapter,
        dtype=torch_dtype(dtype),
        num_layers=num_layers,
        templates=[read_template(name) for name in templates] if templates else None,
        query_length=query_length,
        passage_length=passage_length,
    )
    return teacher.to(best_device())


def read_template(name: str) -> "Template":
    """A template by its built-in name, or out of a YAML file.

    Raises:
        InputError: for an unknown name, or a template without its placeholders.
        MissingError: if there is no such file.
        FormatError: if the file is not YAML, or does not hold exactly name, task, text, yes and no.
    """
    from d2llm.plain_yaml import read_yaml
    from d2llm.teacher.templates import Template, find_template

    path = Path(name)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return find_template(name)
    fields = read_yaml(path, "template", texts=True)
    if not isinstance(fields, dict) or fields.keys() != _TEMPLATE_KEYS:
        raise FormatError(f"{path}: expected a mapping with {', '.join(sorted(_TEMPLATE_KEYS))}, got {shown(fields)}")
    if not all(isinstance(value, str) for value in fields.values()):
        raise FormatError(f"{path}: expected texts only, got {shown(fields)}")
    return Template(**fields)


def of_task(examples: "Sequence[Example]", task: str | None) -> "list[Example]":
    """The examples of a task; None keeps all.

    Raises:
        InputError: for an unknown task, or one that no example has.
    """
    from d2llm.tasks import TASKS

    kept = [example for example in examples if task in (None, example.task)]
    if task not in (None, *TASKS) or not kept:
        raise InputError(f"--task: expected one of {', '.join(TASKS)} that examples have, got {task!r}")
    return kept


def read_passages(corpus: Path | None, examples: "Sequence[Example]") -> list[str]:
    """The texts of a corpus, or without one those of the examples, each once.

    Raises:
        D2LLMError: if the file is absent or malformed.
    """
    from d2llm.data.jsonl import read_corpus

    if corpus is not None:
        return [text for _, text in read_corpus(corpus)]
    return list(dict.fromkeys(passage for example in examples for passage in example.passages))


def read_queries(file: Path) -> list[str]:
    """The texts of a file of queries, one a line, or .jsonl with "text".

    Raises:
        D2LLMError: if the file is absent or malformed.
    """
    from d2llm.data.jsonl import read_corpus

    return [text for _, text in read_corpus(file)]


def load_student(folder: Path) -> Any:
    """A student, on the accelerator where there is one.

    Raises:
        D2LLMError: if the folder or its base is missing or malformed.
    """
    import torch

    from d2llm.devices import best_device
    from d2llm.student import D2LLM

    student = D2LLM.from_pretrained(folder)
    device = best_device()
    if device.type != "cpu" and _LOCAL_RANK in os.environ:
        torch.accelerator.set_device_index(int(os.environ[_LOCAL_RANK]))
    # The decorated signature that transformers gives this method hides its own argument.
    return student.to(device)  # type: ignore[arg-type]


def share_of(shard: str | None) -> tuple[int, int] | None:
    """(I, N) counted from 0 of ``--shard I/N`` counted from 1, or of what torchrun says; None for all at once.

    Raises:
        InputError: for anything but two whole numbers with 1 <= I <= N.
    """
    if shard is None:
        count = int(os.environ.get("WORLD_SIZE", 1))
        return (int(os.environ["RANK"]), count) if count > 1 else None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard: expected I/N with 1 <= I <= N, such as 1/4, got {shown(shard)}")
    return number - 1, count


def or_shipped(path: Path | None, what: str) -> Any:
    """The path, or the folder of what the package brings along, ``student`` or ``teacher``, where it is called so."""
    from d2llm.shipped import STUDENT, TEACHER

    if path is None or path.name != SHIPPED or path.exists():
        return path
    return {"student": STUDENT, "teacher": TEACHER}[what]


def read_token(file: Path) -> str:
    """The token in a file, without the space around it.

    Raises:
        MissingError, InputError: if there is no such file, or less than 16 printable characters in it.
    """
    if not file.is_file():
        raise MissingError(f"--token-file: {file} not found")
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"--token-file: expected 16 or more printable ASCII characters in {file}, without spaces")
    return token
