"""A teacher behind an endpoint: prompts are made here, the LLM runs elsewhere, its logprobs come back.

Logits less what makes them log-probabilities: the difference of yes and no, which is all that probabilities, losses
and rankings read, is that of the raw logits. Features do not come back, so there is no feature imitation.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from d2llm.data.example import text_id
from d2llm.errors import D2LLMError, InputError, MismatchError, shown
from d2llm.teacher.answers import Answers
from d2llm.teacher.completions import Completion, Completions
from d2llm.teacher.prompt import PromptBuilder, builder_of, described, make_builders
from d2llm.teacher.templates import TEMPLATES, Template

#: How a prompt is sent.
FORMS = ("tokens", "text")
#: Marks of a blank in the vocabularies of byte-level BPE and of SentencePiece.
_BLANKS = str.maketrans("\u0120\u2581", "  ")


class EndpointTeacher:
    """Judges pairs by the log-probabilities of an OpenAI-compatible completions endpoint.

    Args:
        completions: asks the endpoint.
        tokenizer: of the LLM that it runs.
        origin: name of that tokenizer, for the header of score files.
        folder: where answers are kept as they come, beside the shards that they become.
        templates: one template for each task that will be asked.
        query_length, passage_length: most tokens kept of each text.
        form: ``tokens`` sends a prompt as token ids, ``text`` as text, for servers that take nothing else; their count
            of its tokens is then held against ours.
        concurrency: requests at once.
        shard: number of this process, which tells its answers from those of others in the folder.

    Raises:
        InputError: as :func:`~d2llm.teacher.prompt.make_builders` does, for another form, or a concurrency below 1.
    """

    def __init__(
        self,
        completions: Completions,
        tokenizer: Any,
        origin: str,
        folder: Path,
        templates: Sequence[Template] = (TEMPLATES["sym-en"], TEMPLATES["asym-en"]),
        query_length: int = 64,
        passage_length: int = 192,
        form: str = "tokens",
        concurrency: int = 16,
        shard: int = 0,
    ) -> None:
        if form not in FORMS:
            raise InputError(f"form: expected one of {', '.join(FORMS)}, got {form!r:.200}")
        if concurrency < 1:
            raise InputError(f"concurrency: expected at least 1, got {concurrency}")
        self.completions = completions
        self.tokenizer = tokenizer
        self.form = form
        self.concurrency = concurrency
        self.builders = make_builders(tokenizer, templates, query_length, passage_length)
        self._header = {
            "engine": "completions",
            "model": completions.model,
            "tokenizer": origin,
            "query_length": query_length,
            "passage_length": passage_length,
            **described(self.builders),
        }
        key = hashlib.sha256(json.dumps(self._header, sort_keys=True).encode()).hexdigest()[:16]
        self.answers = Answers(folder / f"{key}.{shard}.answers", folder.glob(f"{key}.*.answers"))

    def header(self) -> dict[str, Any]:
        """What decides this teacher's scores, the engine among it. Where it runs and how it is asked do not."""
        return dict(self._header)

    def judge(self, queries: Sequence[str], passages: Sequence[str], task: str) -> tuple[np.ndarray, None]:
        """Judge pairs: log-probabilities (N, 2) float32 of [yes, no]; of features none.

        A pair that was answered before is not asked again, nor is one that stands twice.

        Raises:
            InputError: for a task without a template, lists of different lengths, an empty text, what the server
                refuses, or an answer that is not among the likeliest tokens.
            MismatchError: for a server that counts other tokens in a prompt, or calls an answer's id otherwise.
            FormatError, MissingError: for a server that answers otherwise or not at all.
        """
        if len(queries) != len(passages):
            raise InputError(f"passages: expected one for each of {len(queries)} queries, got {len(passages)}")
        builder = builder_of(self.builders, task)
        pairs = [(text_id(query), text_id(passage)) for query, passage in zip(queries, passages, strict=True)]
        rows = list({pair: row for row, pair in enumerate(pairs) if self.answers.get(task, pair) is None}.values())
        asked = [queries[row] for row in rows], [passages[row] for row in rows]
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = [
                pool.submit(self._answer, task, prompt, query, passage)
                for prompt, query, passage in zip(builder.build(*asked), *asked, strict=True)
            ]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
            finally:
                # Those under way are waited for, and their answers kept.
                pool.shutdown(cancel_futures=True)
        for future in done:
            future.result()
        return np.array([self.answers.get(task, pair) for pair in pairs], np.float32).reshape(-1, 2), None

    def _answer(self, task: str, prompt: Sequence[int], query: str, passage: str) -> None:
        """Ask for a pair and keep what comes."""
        try:
            sent = list(prompt) if self.form == "tokens" else self.tokenizer.decode(prompt)
            completion = self.completions.ask(sent)
            if completion.prompt_tokens not in (None, len(prompt)):
                raise MismatchError(
                    f"expected {len(prompt)} tokens of the prompt, the server counts {completion.prompt_tokens}: it "
                    f"has another tokenizer than {self._header['tokenizer']}, or begins a text otherwise"
                )
            logits = self._logits(self.builders[task], completion)
        except D2LLMError as error:
            raise type(error)(f"endpoint: query {query[:80]!r}, passage {passage[:80]!r}: {error}") from None
        self.answers.add(task, (text_id(query), text_id(passage)), logits)

    def _logits(self, builder: PromptBuilder, completion: Completion) -> tuple[float, float]:
        """Log-probabilities of yes and no among the likeliest tokens."""
        found = []
        for token in (builder.yes, builder.no):
            raw = self.tokenizer.convert_ids_to_tokens(token)
            names: list[str | int] = [token, raw.translate(_BLANKS), raw, self.tokenizer.decode([token])]
            if completion.texts.get(token, names[-1]) not in names:
                raise MismatchError(
                    f"expected token {token} to be {names[-1]!r}, the server calls it "
                    f"{completion.texts[token]!r:.200}: it has another tokenizer than {self._header['tokenizer']}"
                )
            found += [next((completion.top[name] for name in names if name in completion.top), None)]
        yes, no = found
        if yes is None or no is None:
            answers = [self.tokenizer.decode([token]) for token in (builder.yes, builder.no)]
            raise InputError(
                f"expected both answers {answers} among the {self.completions.top} likeliest tokens, got "
                f"{shown(list(completion.top))}; ask for more of them, or give a template that this LLM answers so"
            )
        return yes, no
