"""Share of IEM's exact best ten among the first candidates by a surrogate and by the cosine: a table in docs/index.md.

python -m benchmarks.surrogate_recall --cosqa DATA/cosqa --write

Queries are those of the validation sets of ``benchmarks.quality.sets``; surrogates are fitted to docstrings of training
pairs, of which none shares query or passage with them. Embeddings and shares are kept in --work and not made again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.document import put
from benchmarks.quality.sets import sets
from d2llm.data.docstrings import hold_out, standard_library_pairs, without
from d2llm.data.example import text_id
from d2llm.data.validation import Validation
from d2llm.demo.corpus import validation_pairs
from d2llm.evaluation.significance import Means, difference
from d2llm.evaluation.systems import iem_scores
from d2llm.files import atomic_path
from d2llm.index import Index
from d2llm.index.fitting import fit_maps
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM
from d2llm.student.encoding import cosine_similarity
from d2llm.tasks import task_index
from d2llm_kernels.rough import inner

DOCUMENT = Path(__file__).parents[1] / "docs" / "index.md"
SETS = ("docstrings", "everyday", "cosqa")
_K = 10
_COUNTS = (20, 50, 100, 200, 500)


def shares(exact: NDArray[np.float32], rough: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each query's best ten by exact scores (Nq, Np) the share among its first by rough ones: (Nq, counts)."""
    best = np.argsort(-exact, 1, kind="stable")[:, :_K]
    places = np.argsort(np.argsort(-rough, 1, kind="stable"), 1)
    found = np.take_along_axis(places, best, 1)
    return np.stack([(found < count).mean(1) for count in _COUNTS], 1)


class Measured:
    """Shares by set and what chooses, kept in a folder."""

    def __init__(self, work: Path, student: D2LLM, ranks: Sequence[int], queries: int) -> None:
        self.student, self.ranks, self.queries = student, ranks, queries
        self.work = work / student.fingerprint()

    def measure(self, name: str, data: Validation) -> dict[str, NDArray[np.float64]]:
        """Shares (Nq, counts) by what chooses."""
        names = ["cosine", *(f"surrogate, R={rank}" for rank in self.ranks)]
        files = {each: self.work / name / f"{each}, {self.queries}.npy" for each in names}
        if not all(file.is_file() for file in files.values()):
            for each, found in self._shares(data).items():
                with atomic_path(files[each]) as target, open(target, "wb") as file:
                    np.save(file, found, allow_pickle=False)
        return {each: np.load(file, allow_pickle=False) for each, file in files.items()}

    def _shares(self, data: Validation) -> dict[str, NDArray[np.float64]]:
        q, p = self._encoded(data.queries, "query"), self._encoded(data.passages, "passage")
        exact = iem_scores(self.student, q, p, data.task)
        found = {"cosine": shares(exact, cosine_similarity(q.numpy(), p.numpy()))}
        held_out = [*validation_pairs(), *hold_out(standard_library_pairs())[1]]
        texts = list(dict.fromkeys(pair.query for pair in without(standard_library_pairs(), held_out)))
        asked = self._encoded(texts[: self.queries], "query")
        with TemporaryDirectory() as folder:
            index = Index.build(
                self.student.iem, None, Path(folder) / "index", vectors=p, dtype="float32", keep_vectors=False
            )
            snapshot = index._snapshot
            b = snapshot.gather(snapshot.live)
            with torch.inference_mode():
                a = self.student.iem.project_queries(q)
            for rank in self.ranks:
                maps = fit_maps(snapshot, self.student.iem, asked, task_index(data.task), rank, 0)
                products = inner.products(maps.queries(a), maps.passages(b)).numpy()
                found[f"surrogate, R={rank}"] = shares(exact, products)
        return found

    def _encoded(self, texts: Sequence[str], kind: str) -> torch.Tensor:
        path = self.work / "vectors" / f"{kind}-{text_id(chr(0).join(texts))}.npy"
        return torch.from_numpy(np.array(self.student.encode(list(texts), kind, out=path)))


def table(measured: dict[str, NDArray[np.float64]]) -> list[str]:
    """Markdown lines, a row for what chooses: the mean and its bootstrap interval for each number of candidates."""
    lines = [f"| candidates | {' | '.join(map(str, _COUNTS))} |", "| --- |" + " ---: |" * len(_COUNTS)]
    for name, found in measured.items():
        cells = []
        for column in found.T:
            bounds = difference(Means(column, np.zeros_like(column)))
            cells.append(f"{bounds.value:.3f} ({bounds.low:.3f} to {bounds.high:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Measure and, if asked, write the tables that are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surrogate_recall", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/surrogate"), help="folder of what has been measured")
    parser.add_argument("--student", default=str(STUDENT))
    parser.add_argument("--cosqa", type=Path, help="folder of CoSQA's codes.json and dev.json, which is not shipped")
    parser.add_argument("--only", nargs="*", choices=SETS, help="sets to measure; all by default")
    parser.add_argument("--rank", nargs="*", type=int, default=[64, 128, 256], help="widths R")
    parser.add_argument("--queries", type=int, default=2000, help="training queries to fit to")
    parser.add_argument("--write", action="store_true", help="bring docs/index.md up to it")
    asked = parser.parse_args(arguments)
    measured = Measured(asked.work, D2LLM.from_pretrained(asked.student), asked.rank, asked.queries)
    known = sets(asked.cosqa)
    blocks = {}
    for name in [each for each in SETS if each in known and (asked.only is None or each in asked.only)]:
        blocks[f"surrogate-{name}"] = table(measured.measure(name, known[name]()))
        print(f"\n{name}", *blocks[f"surrogate-{name}"], sep="\n")
    if asked.write:
        put(DOCUMENT, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
