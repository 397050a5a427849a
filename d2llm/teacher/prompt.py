"""Prompts as token ids: texts are shortened to fit, the question at the end never is."""

from collections.abc import Sequence
from typing import Any

import torch

from d2llm.errors import InputError
from d2llm.teacher.templates import Template
from d2llm.texts import check_texts, pad


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

    The literals of the template and the two texts are tokenised apart, so that truncation of a
    text cannot touch the question, and a pair's prompt does not depend on the pairs beside it. A template may
    hold control tokens of the LLM; those that a text spells out are plain text.

    Args:
        tokenizer: of the teacher's LLM.
        template: the question and its answers.
        query_length, passage_length: most tokens kept of each text.

    Raises:
        InputError: for a length below 1, or an answer that is not one token.
    """

    def __init__(self, tokenizer: Any, template: Template, query_length: int = 64, passage_length: int = 192) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.limits = {"query": query_length, "passage": passage_length}
        for name, limit in self.limits.items():
            if limit < 1:
                raise InputError(f"{name}_length: expected at least 1, got {limit}")
        self.yes = answer_id(tokenizer, template.yes)
        self.no = answer_id(tokenizer, template.no)
        if self.yes == self.no:
            raise InputError(f"template {template.name!r}: both answers are token {self.yes}")
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._literals = [self._tokens([literal], plain=False)[0] for literal, _ in template.pieces()]
        self._literals[0] = start + self._literals[0]

    @property
    def longest(self) -> int:
        """Most tokens that a prompt can have."""
        return sum(map(len, self._literals)) + sum(self.limits.values())

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
        cut = {
            name: [ids[: self.limits[name]] for ids in self._tokens(values, plain=True)] if values else []
            for name, values in (("query", queries), ("passage", passages))
        }
        fields = [field for _, field in self.template.pieces()]
        prompts: list[list[int]] = [[] for _ in queries]
        for literal, field in zip(self._literals, fields, strict=True):
            for i, prompt in enumerate(prompts):
                prompt.extend(literal)
                if field is not None:
                    prompt.extend(cut[field][i])
        return prompts


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``position_ids``, each (N, L) int64, padded on the left.

    Left padding puts every prompt's last token at position -1, where the answer is read.
    """
    ids, mask = pad(prompts, pad_id, "left")
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
