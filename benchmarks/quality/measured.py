"""Reciprocal ranks of systems on sets of queries, measured once and kept, and tables of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from d2llm.data.example import text_id
from d2llm.data.validation import Validation
from d2llm.evaluation.significance import Means, difference
from d2llm.evaluation.systems import bm25, iem_scores
from d2llm.files import atomic_path
from d2llm.fusion import fuse
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity

LEXICAL, COSINE, IEM, HYBRID = "BM25", "cosine", "IEM", "hybrid"
#: The ways that a student scores.
WAYS = (COSINE, IEM, HYBRID)


class Measured:
    """Reciprocal ranks by set and system, kept in a folder; parts of a document share the embeddings beside it."""

    def __init__(self, work: Path, part: str, load: Callable[[Path], D2LLM] = D2LLM.from_pretrained) -> None:
        """Args: the folder of all parts, the part's name, and how a student is read."""
        self.folder = work / part
        self.load = load
        self._vectors = work / "vectors"

    def file(self, data: str, system: str) -> Path:
        """Where the ranks of a system on a set lie."""
        return self.folder / "ranks" / data / f"{system}.npy"

    def ranks(self, data: str, system: str) -> np.ndarray | None:
        """(Nq,) reciprocal ranks, None where they were not measured."""
        file = self.file(data, system)
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def known(self, data: str, system: str) -> np.ndarray:
        """(Nq,) reciprocal ranks of a system that has been measured."""
        ranks = self.ranks(data, system)
        assert ranks is not None, f"{system} on {data} was not measured"
        return ranks

    def keep(self, data: str, system: str, ranks: np.ndarray) -> None:
        """Keep the ranks of a system on a set."""
        with atomic_path(self.file(data, system)) as target, open(target, "wb") as file:
            np.save(file, ranks, allow_pickle=False)

    def measure(self, name: str, data: Validation, students: dict[str, Path]) -> None:
        """Whatever of a set is not measured yet, of BM25 and of students, each by its folder."""
        needed = [each for each in students if self.ranks(name, f"{each}, {HYBRID}") is None]
        if not needed and self.ranks(name, LEXICAL) is not None:
            return
        lexical = bm25(data.queries, data.passages)
        self.keep(name, LEXICAL, data.reciprocal_ranks(lexical))
        for each in needed:
            student = self.load(students[each])
            cosine, logits = self.scores(student, data)
            hybrid = fuse(logits, lexical, student.config.bm25_weight)
            for system, scores in zip(WAYS, (cosine, logits, hybrid), strict=True):
                self.keep(name, f"{each}, {system}", data.reciprocal_ranks(scores))

    def scores(self, student: D2LLM, data: Validation) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and logits, (Nq, Np) each; embeddings are kept too, since most of the time is theirs."""
        folder = self._vectors / student.fingerprint()
        texts = ((data.queries, "query"), (data.passages, "passage"))
        made = [np.array(student.encode(some, kind, out=folder / f"{_key(some)}.npy")) for some, kind in texts]
        return cosine_similarity(*made), iem_scores(student, *map(torch.from_numpy, made), data.task)


def table(measured: Measured, data: str, systems: Sequence[str]) -> list[str]:
    """Markdown lines: MRR of every system, and the difference of each to the first one, paired, by bootstrap."""
    lines = ["| system | MRR | over the first, 95 % |", "| --- | ---: | ---: |"]
    first = measured.ranks(data, systems[0])
    for system in systems:
        ranks = measured.ranks(data, system)
        if ranks is not None:
            over = "" if first is None or system == systems[0] else interval(ranks, first)
            lines.append(f"| {system} | {ranks.mean():.3f} | {over} |")
    return lines


def interval(ranks: np.ndarray, others: np.ndarray) -> str:
    """The 95 % interval of a difference of means, paired, as a cell of a table."""
    found = difference(Means(ranks, others))
    return f"{found.low:+.3f} to {found.high:+.3f}"


def _key(texts: Sequence[str]) -> str:
    return text_id("\0".join(texts))
