"""Scoring pairs in shards: each is written whole or not at all, and one that is there is never made again.

A shard's name is a hash of the teacher's header and of the pairs in it, so scores of another
teacher, template or data set can lie in the same folder without being taken for these.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from d2llm.data.example import Example, text_id
from d2llm.errors import InputError, MissingError
from d2llm.teacher.scores import Group, Pair, ScoreTable

#: Pairs that one shard holds; minutes of work for a small LLM on a CPU.
SHARD_PAIRS = 1024


class Judge(Protocol):
    """Who scores: :class:`d2llm.teacher.model.Teacher`, or :class:`d2llm.teacher.endpoint.EndpointTeacher`."""

    def header(self) -> dict[str, Any]:
        """What decides the scores."""

    def judge(self, queries: Sequence[str], passages: Sequence[str], task: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits (N, 2) float32 [yes, no] of pairs, and features (N, D) float32, or None where there are none."""


@dataclass(frozen=True)
class Work:
    """Pairs of one task that become one shard; ``groups`` are rows of pairs whose features are compared."""

    task: str
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    groups: tuple[tuple[int, int], ...] = ()

    def key(self, header: dict[str, object]) -> str:
        """Name of the shard: 16 hex digits over the teacher and the pairs."""
        teacher = dict(header)
        if teacher.get("base") is not None:
            # One folder has many names; the weights tell.
            del teacher["model"]
        digest = hashlib.sha256(json.dumps([teacher, self.task, self.groups], sort_keys=True).encode())
        for text in (*self.queries, *self.passages):
            digest.update(bytes.fromhex(text_id(text)))
        return digest.hexdigest()[:16]


def plan_groups(examples: Sequence[Example], shard_pairs: int = SHARD_PAIRS) -> Iterator[Work]:
    """Work that scores every example's [positive, hard negatives] and compares their features.

    A shard holds about ``shard_pairs`` pairs, and whole examples.

    Raises:
        InputError: if ``shard_pairs`` is below 1.
    """
    _check_size(shard_pairs)
    for task in sorted({example.task for example in examples}):
        queries: list[str] = []
        passages: list[str] = []
        groups: list[tuple[int, int]] = []
        for example in (example for example in examples if example.task == task):
            if queries and len(queries) + len(example.passages) > shard_pairs:
                yield Work(task, tuple(queries), tuple(passages), tuple(groups))
                queries, passages, groups = [], [], []
            groups.append((len(queries), len(queries) + len(example.passages)))
            queries.extend([example.query] * len(example.passages))
            passages.extend(example.passages)
        yield Work(task, tuple(queries), tuple(passages), tuple(groups))


def plan_pairs(pairs: Sequence[tuple[str, str]], task: str, shard_pairs: int = SHARD_PAIRS) -> Iterator[Work]:
    """Work that scores (query, passage) pairs, such as those that meet inside a batch.

    Raises:
        InputError: if ``shard_pairs`` is below 1.
    """
    _check_size(shard_pairs)
    for start in range(0, len(pairs), shard_pairs):
        queries, passages = zip(*pairs[start : start + shard_pairs], strict=True)
        yield Work(task, queries, passages)


def _check_size(shard_pairs: int) -> None:
    if shard_pairs < 1:
        raise InputError(f"shard_pairs: expected at least 1, got {shard_pairs}")


def score(
    teacher: Judge,
    work: Sequence[Work],
    folder: str | os.PathLike[str],
    *,
    shard: int = 0,
    num_shards: int = 1,
    show_progress: bool = True,
) -> list[Path]:
    """Make the shards of ``work`` that are not in ``folder`` yet.

    With ``num_shards`` processes, every ``num_shards``-th is made by each, from number ``shard`` on.

    Returns:
        The files of all shards, also those that other processes make.

    Raises:
        InputError: if ``shard`` is not below ``num_shards``, a text or task cannot be judged, or a pair is asked under
            both tasks.
    """
    _check_one_task(work)
    if not 0 <= shard < num_shards:
        raise InputError(f"shard: expected 0 to {num_shards - 1}, got {shard}")
    header = teacher.header()
    files = [Path(folder) / f"{each.key(header)}.safetensors" for each in work]
    mine = [(file, each) for i, (file, each) in enumerate(zip(files, work, strict=True)) if i % num_shards == shard]
    todo = [(file, each) for file, each in mine if not file.exists()]
    total = sum(len(each.queries) for _, each in todo)
    with tqdm(total=total, desc="teacher scores", unit="pair", disable=not show_progress) as bar:
        for file, each in todo:
            _judge(teacher, each).save(file)
            bar.update(len(each.queries))
    return files


def _check_one_task(work: Sequence[Work]) -> None:
    asked: dict[tuple[str, str], str] = {}
    for each in work:
        for pair in zip(each.queries, each.passages, strict=True):
            if asked.setdefault(pair, each.task) != each.task:
                raise InputError(
                    f"examples: {pair[0][:60]!r} with {pair[1][:60]!r} is asked under both tasks, and a file of scores "
                    "holds one answer; score each task into a file of its own (--task) and train with "
                    "data.teacher={sym: FILE, asym: FILE}"
                )


def collect(files: Sequence[Path]) -> ScoreTable:
    """All shards as one table. Of a pair or group in several of them, the last one's scores are kept.

    Raises:
        InputError: for no files.
        MissingError: naming how many shards are still to be made.
        FormatError: if a shard is truncated or altered; delete it to have it made again.
        MismatchError: if they were made by different teachers.
    """
    if not files:
        raise InputError("files: expected one or more shards, got none")
    missing = [file for file in files if not file.exists()]
    if missing:
        raise MissingError(f"teacher scores: {len(missing)} of {len(files)} shards are missing, such as {missing[0]}")
    header = ScoreTable.load(files[0]).header
    logits: dict[Pair, tuple[float, float]] = {}
    relations: dict[Group, np.ndarray] = {}
    for file in files:
        table = ScoreTable.load(file)
        table.check_same_teacher(header)
        logits.update(table.items())
        relations.update(table.relations())
    return ScoreTable(header, logits, relations)


def _judge(teacher: Judge, work: Work) -> ScoreTable:
    logits, features = teacher.judge(work.queries, work.passages, work.task)
    ids = [(text_id(query), text_id(passage)) for query, passage in zip(work.queries, work.passages, strict=True)]
    relations: dict[Group, np.ndarray] = {}
    if features is not None:
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        for start, end in work.groups:
            group = ids[start][0], tuple(passage for _, passage in ids[start:end])
            relations[group] = unit[start:end] @ unit[start:end].T
    return ScoreTable(teacher.header(), dict(zip(ids, map(tuple, logits.tolist()), strict=True)), relations)
