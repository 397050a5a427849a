"""Options and steps of d2llm teach score where an endpoint judges."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2llm.cli.options import load_teacher, read_template, read_token
from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.teacher.endpoint import EndpointTeacher
    from d2llm.teacher.scores import ScoreTable
    from d2llm.teacher.scoring import Work

Endpoint = Annotated[
    str | None,
    typer.Option(
        help="Let an OpenAI-compatible server judge, such as http://127.0.0.1:8000/v1; --model is its name for the LLM."
    ),
]
TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="Tokenizer of the endpoint's LLM; by default that of --model.")
]
Prompts = Annotated[
    str, typer.Option(help="How prompts go to the endpoint: tokens, or text for servers that take no token ids.")
]
TopLogprobs = Annotated[int, typer.Option(help="Likeliest tokens that the endpoint is asked for.")]
Concurrency = Annotated[int, typer.Option(help="Requests to the endpoint at once.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer of the endpoint.")]
Retries = Annotated[int, typer.Option(help="Repetitions where the endpoint is busy, late or not to be reached.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the token that the endpoint asks for.")]
Check = Annotated[
    int, typer.Option(help="Judge so many of the endpoint's pairs in-process too, with the LLM of --tokenizer.")
]

#: What is asked where no template is named.
_TEMPLATES = ("sym-en", "asym-en")


def endpoint_teacher(
    endpoint: str,
    model: str | None,
    tokenizer: str | None,
    template: list[str] | None,
    folder: Path,
    *,
    prompts: str = "tokens",
    top_logprobs: int = 20,
    concurrency: int = 16,
    timeout: float = 120.0,
    retries: int = 6,
    token_file: Path | None = None,
    shard: int = 0,
) -> "EndpointTeacher":
    """A teacher behind an endpoint, as the options ask for it.

    Raises:
        D2LLMError: for no model, an option out of range, or a tokenizer, template or token that is absent or malformed.
    """
    from d2llm.backbone import load_tokenizer
    from d2llm.teacher.completions import Completions
    from d2llm.teacher.endpoint import EndpointTeacher

    if model is None:
        raise InputError("--model: expected the name by which the endpoint knows its LLM, got none")
    token = None if token_file is None else read_token(token_file)
    name = tokenizer or model
    return EndpointTeacher(
        Completions(endpoint, model, top_logprobs, timeout, retries, token),
        load_tokenizer(name),
        name,
        folder,
        [read_template(each) for each in template or _TEMPLATES],
        form=prompts,
        concurrency=concurrency,
        shard=shard,
    )


def check_sample(table: "ScoreTable", work: "Sequence[Work]", name: str, template: list[str] | None, count: int) -> str:
    """How far the endpoint's differences of logits lie from those of the LLM here, over the first pairs.

    Raises:
        D2LLMError: if the LLM is not found.
    """
    import numpy as np

    from d2llm.data.example import text_id

    teacher = load_teacher(name, None, template)
    apart: list[float] = []
    for each in work:
        if len(apart) == count:
            break
        queries, passages = each.queries[: count - len(apart)], each.passages[: count - len(apart)]
        here, _ = teacher.judge(queries, passages, each.task)
        there = [table.logits(text_id(q), text_id(p)) for q, p in zip(queries, passages, strict=True)]
        apart += np.abs(np.diff(here, axis=1) - np.diff(np.array(there), axis=1)).ravel().tolist()
    return (
        f"{len(apart)} pairs judged in-process by {name}: the difference of both logits is another by "
        f"{np.mean(apart):.4f} on average, {max(apart):.4f} at most"
    )
