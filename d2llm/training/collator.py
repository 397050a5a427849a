"""Examples and teacher scores to the tensors of one batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from d2llm.data.example import Example, text_id
from d2llm.data.positives import KnownPositives
from d2llm.errors import MismatchError
from d2llm.tasks import task_index
from d2llm.texts import pad, tokenize
from d2llm.training.vectors import Computed


class Scores(Protocol):
    """What a batch needs of a table of teacher scores; :class:`d2llm.teacher.scores.ScoreTable` is one."""

    @property
    def header(self) -> dict[str, Any]:
        """Which model and template made the scores."""

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float] | None:
        """The teacher's raw logits of yes and no for a pair, None where it has not judged it."""

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        """(n, n) float32 cosines of the teacher's features of these passages, None where it has none."""


#: Logits of a pair that the teacher has not judged.
_UNKNOWN = (math.nan, math.nan)


def check_header(teacher: Scores, expected: Mapping[str, Any]) -> None:
    """Make sure that scores were made as asked.

    Args:
        teacher: the scores.
        expected: header fields and their values, such as ``model`` and ``templates``.

    Raises:
        MismatchError: naming the first field that differs.
    """
    for name, value in expected.items():
        if teacher.header.get(name) != value:
            raise MismatchError(f"teacher scores: expected {name} {value!r}, got {teacher.header.get(name)!r}")


def judge_of(teacher: Scores | Mapping[str, Scores] | None, task: str) -> Scores | None:
    """The teacher that judges the queries of a task, be it one for both or one by task; None where none does."""
    return teacher.get(task) if isinstance(teacher, Mapping) else teacher


class Collator:
    """Callable that makes a batch. B examples, groups of 1+K passages (the positive first), P distinct passages."""

    def __init__(
        self,
        tokenizer: Any,
        query_length: int,
        passage_length: int,
        known: KnownPositives,
        teacher: Scores | Mapping[str, Scores] | None = None,
        temperature: float = 1.0,
        vectors: Computed | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Make the collator.

        Args:
            tokenizer: the student's.
            query_length: tokens that a query is cut to.
            passage_length: tokens that a passage is cut to.
            known: positives of all training examples, which are masked wherever they meet a query of theirs.
            teacher: scores by (query id, passage id), the same for both tasks or by task; without them, scores that
                examples carry are used.
            temperature: T of the teacher's softmax over its two logits (paper section 3.1).
            vectors: embeddings or states that stand in the batch in place of tokens.
            share: (rank, processes): where processes gather, which of as many equal parts of the examples is embedded
                here.
        """
        self.tokenizer = tokenizer
        self.query_length = query_length
        self.passage_length = passage_length
        self.known = known
        self.teacher = teacher
        self.temperature = temperature
        self.vectors = vectors
        self.rank, self.processes = share

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The batch of the N examples of all processes that gather, B of which are this one's share.

        Returns:
            ``input_ids, attention_mask`` (B, L) int64; ``passage_input_ids, passage_attention_mask`` (P, Lp) int64,
            each distinct passage once; ``groups`` (B, 1+K) int64 rows of them; ``valid`` (B, 1+K)
            bool, false where an example has fewer negatives; ``task`` (B,) int64; ``duplicates`` (B, N) bool.
            With teacher scores also ``s`` and ``log_odds`` (B, 1+K), ``s_in_batch`` (B, N) and ``relation``
            (B, 1+K, 1+K), all float32, NaN where the teacher has not judged. K is that of all N examples.
        """
        size = len(examples) // self.processes
        share = slice(self.rank * size, (self.rank + 1) * size)
        mine = examples[share]
        rows = {text: row for row, text in enumerate(dict.fromkeys(p for e in mine for p in e.passages))}
        width = max(len(example.passages) for example in examples)
        groups = torch.zeros(size, width, dtype=torch.int64)
        valid = torch.zeros(size, width, dtype=torch.bool)
        for i, example in enumerate(mine):
            count = len(example.passages)
            groups[i, :count] = torch.tensor([rows[text] for text in example.passages])
            valid[i, :count] = True
        queries, positives = [e.query for e in examples], [e.positive for e in examples]
        batch = {
            **self._texts(queries[share], list(rows)),
            "groups": groups,
            "valid": valid,
            "task": torch.tensor([task_index(example.task) for example in mine]),
            "duplicates": torch.from_numpy(self.known.mask(queries, positives)[share]),
        }
        if self.teacher is not None:
            batch.update(self._judged(self.teacher, mine, positives, width))
        elif any(example.scores is not None for example in examples):
            batch.update(self._carried(mine, width))
        return batch

    def _texts(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, Tensor]:
        """Tokens and masks of the texts, or what was computed of them."""
        if self.vectors is not None:
            return self.vectors.inputs(queries, passages)
        pad_id = self.tokenizer.pad_token_id
        query_tokens, query_mask = pad(tokenize(self.tokenizer, queries, self.query_length), pad_id)
        tokens, mask = pad(tokenize(self.tokenizer, passages, self.passage_length), pad_id)
        return {
            "input_ids": query_tokens,
            "attention_mask": query_mask,
            "passage_input_ids": tokens,
            "passage_attention_mask": mask,
        }

    def _judged(
        self, teacher: Scores | Mapping[str, Scores], examples: Sequence[Example], positives: Sequence[str], width: int
    ) -> dict[str, Tensor]:
        """Targets from the table, by the texts' ids; ``positives`` are those of all N examples."""
        size = len(examples)
        logits = torch.full((size, width, 2), torch.nan)
        s_in_batch = torch.full((size, len(positives)), torch.nan)
        relation = torch.full((size, width, width), torch.nan)
        queries = [text_id(example.query) for example in examples]
        groups = [[text_id(passage) for passage in example.passages] for example in examples]
        columns = [text_id(positive) for positive in positives]

        def look_up(judge: Scores, query: str, passages: Sequence[str]) -> Tensor:
            # A row at a time: to put one number into a tensor takes ten times as long as to look it up.
            return torch.tensor([judge.logits(query, passage) or _UNKNOWN for passage in passages])

        for i, query in enumerate(queries):
            judge = judge_of(teacher, examples[i].task)
            if judge is None:
                continue
            logits[i, : len(groups[i])] = look_up(judge, query, groups[i])
            s_in_batch[i] = self._odds(look_up(judge, query, columns)).sigmoid()
            cosines = judge.relation(query, groups[i])
            if cosines is not None:
                n = len(groups[i])
                relation[i, :n, :n] = torch.from_numpy(np.asarray(cosines, dtype=np.float32))
        return {**self._of_groups(logits), "s_in_batch": s_in_batch, "relation": relation}

    def _carried(self, examples: Sequence[Example], width: int) -> dict[str, Tensor]:
        """Targets from the raw logits that the examples themselves carry."""
        logits = torch.full((len(examples), width, 2), torch.nan)
        for i, example in enumerate(examples):
            if example.scores is not None:
                logits[i, : len(example.scores)] = torch.tensor(example.scores, dtype=torch.float32)
        return self._of_groups(logits)

    def _of_groups(self, logits: Tensor) -> dict[str, Tensor]:
        """Targets of raw logits (B, 1+K, 2)."""
        odds = self._odds(logits)
        return {"s": odds.sigmoid(), "log_odds": odds}

    def _odds(self, logits: Tensor) -> Tensor:
        """Log-odds of yes (...,) of raw logits (..., 2), whose sigmoid is the softmax over both (paper section 3.1)."""
        return (logits[..., 0] - logits[..., 1]) / self.temperature
