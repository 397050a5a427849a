"""Prompts as token ids: texts are shortened to fit, the question at the end never is."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from d2llm.errors import InputError
from d2llm.teacher.templates import Template
from d2llm.texts import check_texts, pad

#: How prompts are made now.
PROMPT_VERSION = 2


def answer_ids(tokenizer: Any, yes: str, no: str) -> tuple[int, int]:
    """Ids of two answers that are one token each, as they stand or, for both, without the white space around them.

    Tokenizers of SentencePiece put a blank before a text by themselves, so that `` yes`` would have two.

    Raises:
        InputError: if the tokenizer cuts an answer into several tokens, which are named, or does not know it.
    """
    try:
        return answer_id(tokenizer, yes), answer_id(tokenizer, no)
    except InputError as error:
        if (yes.strip(), no.strip()) == (yes, no):
            raise
        try:
            return answer_id(tokenizer, yes.strip()), answer_id(tokenizer, no.strip())
        except InputError as bare:
            raise InputError(
                f"{error}, and {bare}; give a template (--template) whose answers are one token each"
            ) from None


def answer_id(tokenizer: Any, answer: str) -> int:
    """Id of an answer that is one token.

    Raises:
        InputError: if the tokenizer cuts the answer into several tokens, which are named, or does not know it.
    """
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1:
        names = [_token_text(tokenizer, i) for i in ids]
        raise InputError(f"answer {answer!r}: expected one token, this tokenizer makes {len(ids)}: {names}")
    if ids[0] == tokenizer.unk_token_id and answer != tokenizer.unk_token:
        raise InputError(f"answer {answer!r}: this tokenizer does not know it")
    return int(ids[0])


def _token_text(tokenizer: Any, token_id: int) -> str:
    """A token as its text, or by the tokenizer's own name where it is a part of a character."""
    text = tokenizer.decode([token_id])
    return tokenizer.convert_ids_to_tokens(token_id) if not text or "\ufffd" in text else text


class PromptBuilder:
    """Turns (query, passage) texts into prompts of token ids.

    A prompt is tokenised as a whole, begins as the tokenizer begins a text, and loses tokens of its two texts alone:
    the question is never cut. A pair's prompt does not depend on the pairs beside it. A template may hold control
    tokens of the LLM; those that a text spells out are plain text.

    Version 1, for adapters that were tuned so and for tokenizers that tell no offsets, tokenises literals and texts
    apart, which leaves the blank between them a token of its own, and begins with any BOS token that there is.

    Args:
        tokenizer: of the teacher's LLM.
        template: the question and its answers.
        query_length, passage_length: most tokens kept of each text.
        version: 1 or 2.

    Raises:
        InputError: for a length below 1, an answer that is not one token, or another version.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        query_length: int = 64,
        passage_length: int = 192,
        version: int = PROMPT_VERSION,
    ) -> None:
        if version not in (1, PROMPT_VERSION):
            raise InputError(f"version: expected 1 or {PROMPT_VERSION}, got {version!r}")
        self.version = version if tokenizer.is_fast else 1
        self.tokenizer = tokenizer
        self.template = template
        self.limits = {"query": query_length, "passage": passage_length}
        for name, limit in self.limits.items():
            if limit < 1:
                raise InputError(f"{name}_length: expected at least 1, got {limit}")
        self.yes, self.no = answer_ids(tokenizer, template.yes, template.no)
        if self.yes == self.no:
            raise InputError(f"template {template.name!r}: both answers are token {self.yes}")
        self.beginning = _beginning(tokenizer) if self.version > 1 else _bos(tokenizer)
        self._literals = [self._tokens([literal], plain=False)[0] for literal, _ in template.pieces()]
        # Where each literal spells control tokens.
        spelled = re.compile("|".join(map(re.escape, sorted(tokenizer.all_special_tokens, key=len, reverse=True))))
        self._controls = [
            [found.span() for found in spelled.finditer(literal) if found.group()] for literal, _ in template.pieces()
        ]

    @property
    def longest(self) -> int:
        """Most tokens that a prompt can have."""
        return len(self.beginning) + sum(map(len, self._literals)) + sum(self.limits.values())

    def _tokens(self, texts: Sequence[str], plain: bool) -> list[list[int]]:
        """Token ids; of a plain text, a control token that it spells out too."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain)["input_ids"]

    def build(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
        """Token ids of each pair's prompt.

        Raises:
            InputError: for lists of different lengths or an empty text.
        """
        queries, passages = check_texts(queries, "queries", none=True), check_texts(passages, "passages", none=True)
        if len(queries) != len(passages):
            raise InputError(f"passages: expected one for each of {len(queries)} queries, got {len(passages)}")
        if not queries:
            return []
        return self._whole(queries, passages) if self.version > 1 else self._apart(queries, passages)

    def _whole(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
        """Prompts tokenised as they read (version 2)."""
        prompts = []
        for query, passage in zip(queries, passages, strict=True):
            text, places, values = "", {}, {"query": query, "passage": passage}
            controls: list[tuple[int, int]] = []
            for (literal, field), spelled in zip(self.template.pieces(), self._controls, strict=True):
                controls.extend((len(text) + first, len(text) + last) for first, last in spelled)
                text += literal
                if field is not None:
                    places[field] = len(text), len(text) + len(values[field])
                    text += values[field]
            left = dict(self.limits)
            kept = []
            for token, end in self._read(text, controls):
                # A token that reaches beyond a text belongs to the question after it.
                field = next((name for name, (first, last) in places.items() if first < end <= last), None)
                if field is not None:
                    left[field] -= 1
                if field is None or left[field] >= 0:
                    kept.append(token)
            # A template may spell the beginning itself.
            prompts.append(kept if kept[: len(self.beginning)] == self.beginning else self.beginning + kept)
        return prompts

    def _read(self, text: str, controls: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """(token, where it ends) of a text: control tokens at the places given, plain text between them."""
        begin = 0
        for first, last in [*controls, (len(text), len(text))]:
            found = self.tokenizer(
                text[begin:first], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
            )
            for token, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
                yield token, begin + end
            if first < last:
                yield self.tokenizer.convert_tokens_to_ids(text[first:last]), last
            begin = last

    def _apart(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
        """Prompts of pieces tokenised apart (version 1)."""
        cut = {
            name: [ids[: self.limits[name]] for ids in self._tokens(values, plain=True)]
            for name, values in (("query", queries), ("passage", passages))
        }
        fields = [field for _, field in self.template.pieces()]
        prompts = [list(self.beginning) for _ in queries]
        for literal, field in zip(self._literals, fields, strict=True):
            for i, prompt in enumerate(prompts):
                prompt.extend(literal)
                if field is not None:
                    prompt.extend(cut[field][i])
        return prompts


def make_builders(
    tokenizer: Any,
    templates: Sequence[Template],
    query_length: int,
    passage_length: int,
    version: int = PROMPT_VERSION,
) -> dict[str, PromptBuilder]:
    """The builder of every template, by task.

    Raises:
        InputError: for no templates, two of one task, or as :class:`PromptBuilder` does.
    """
    tasks = [template.task for template in templates]
    if not tasks or len(set(tasks)) != len(tasks):
        raise InputError(f"templates: expected one or more, each of another task, got tasks {tasks}")
    return {
        template.task: PromptBuilder(tokenizer, template, query_length, passage_length, version)
        for template in templates
    }


def builder_of(builders: Mapping[str, PromptBuilder], task: str) -> PromptBuilder:
    """The builder of a task.

    Raises:
        InputError: if there is none.
    """
    if task not in builders:
        raise InputError(
            f"task: this teacher has templates for {sorted(builders)}, got {task!r}; give a template for it, or tune "
            "on examples of it too"
        )
    return builders[task]


def described(builders: Mapping[str, PromptBuilder]) -> dict[str, Any]:
    """What the header of a score file says of its prompts."""
    return {
        "prompt": next(iter(builders.values())).version,
        "templates": {task: builder.template.text for task, builder in sorted(builders.items())},
        "answers": {task: [builder.yes, builder.no] for task, builder in sorted(builders.items())},
    }


def _bos(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text; what it puts behind one has no place before an answer."""
    bare = tokenizer("Answer", add_special_tokens=False)["input_ids"]
    whole = tokenizer("Answer")["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[: next(starts, 0)]


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``position_ids``, each (N, L) int64, padded on the left.

    Left padding puts every prompt's last token at position -1, where the answer is read.
    """
    ids, mask = pad(prompts, pad_id, "left")
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
