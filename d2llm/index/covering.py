"""A surrogate on the disk: its maps, its certificates, and its int8 rows for each of an index's first segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2llm.errors import FormatError
from d2llm.index.certificate import Certificate
from d2llm.index.engines import Engine, FaissEngine
from d2llm.index.records import FileRecord, SegmentRecord, SurrogateRecord
from d2llm.index.surrogate import Maps
from d2llm.tensor_files import read_tensors, write_tensors
from d2llm_kernels.rough import inner
from d2llm_kernels.rough.rows import Rows, widened

# Rows mapped at a time: 64 MB.
_ROWS = 1 << 15
#: Modes of a search that are certified; one that could not be has a certificate of no queries.
CERTIFIED_MODES = ("iem", "hybrid")


@dataclass(frozen=True)
class Certified:
    """The certificates of a surrogate: for the branch ``task``, by the mode of the search.

    ``weight``: what BM25 weighed in the hybrid ones.
    """

    task: int
    weight: float
    modes: dict[str, Certificate]

    def write(self, path: Path) -> None:
        """Write them.

        Raises:
            OSError: if the disk fills.
        """
        parts = {"task": torch.tensor(self.task), "weight": torch.tensor(self.weight, dtype=torch.float64)}
        for mode, each in self.modes.items():
            parts |= {f"{mode}_places": each.places, f"{mode}_needed": each.needed}
        write_tensors(parts, path)

    @classmethod
    def read(cls, path: Path, end: int) -> "Certified":
        """Inverse of ``write``, for a surrogate of ``end`` passages.

        Raises:
            FormatError: if the file holds other tensors than it should.
        """
        pair = (None, None, torch.int64)
        expected = {f"{mode}_{part}": pair for mode in CERTIFIED_MODES for part in ("places", "needed")}
        found = read_tensors(path, {**expected, "task": (torch.int64,), "weight": (torch.float64,)})
        made = {mode: Certificate(found[f"{mode}_places"], found[f"{mode}_needed"]) for mode in CERTIFIED_MODES}
        for mode, each in made.items():
            fits = each.places.shape == each.needed.shape
            if not fits or bool(((each.places < 0) | (each.places >= end)).any()):
                raise FormatError(f"{path}: {mode}: expected positions below {end}, and a need for each")
        return cls(int(found["task"]), float(found["weight"]), made)


def write_maps(maps: Maps, path: Path) -> None:
    """Write the maps.

    Raises:
        OSError: if the disk fills.
    """
    write_tensors(vars(maps), path)


def write_rows(maps: Maps, projected: Rows, path: Path) -> None:
    """Write a segment's rows.

    Raises:
        OSError: if the disk fills.
    """
    blocks = (projected[start : start + _ROWS] for start in range(0, len(projected), _ROWS))
    write_tensors({"rows": torch.cat([maps.passages(widened(block)) for block in blocks])}, path)


class Covering:
    """A surrogate of the first passages of an index.

    Args:
        maps: R wide.
        rows: of each segment covered (n, R) int8.
        engine: folder and record of an engine's file, which certified searches then ask; None where they scan.
    """

    def __init__(self, maps: Maps, rows: Sequence[Tensor], engine: tuple[Path, FileRecord] | None = None) -> None:
        self.maps, self._rows, self._engine = maps, rows, engine
        #: Passages that it covers: those at positions below this.
        self.end = sum(map(len, rows))

    @classmethod
    def open(
        cls, folder: Path, segments: Sequence[SegmentRecord], hidden: int, engine: FileRecord | None, part: slice
    ) -> tuple["Covering", Certified]:
        """The surrogate in a folder, its rows mapped, and its certificates.

        Args:
            segments: those that it covers.
            hidden: F.
            engine: the file of its engine, read when it is first asked.
            part: of the segments, those that are opened.

        Raises:
            FormatError: if a file holds other tensors than it should.
        """
        path, certificate, *parts = (folder / name for name in SurrogateRecord.names(segments))
        wide, narrow = (None, hidden, torch.float32), (None, torch.float32)
        found = read_tensors(path, {"query": wide, "query_bias": narrow, "passage": wide, "passage_bias": narrow})
        sizes = {len(each) for each in found.values()}
        if len(sizes) != 1:
            raise FormatError(f"{path}: expected maps to one width, got several: {sorted(sizes)}")
        expected = [{"rows": (segment.rows, *sizes, torch.int8)} for segment in segments]
        rows = [read_tensors(*each)["rows"] for each in zip(parts, expected, strict=True)]
        covering = cls(Maps(**found), rows[part], None if engine is None else (folder, engine))
        return covering, Certified.read(certificate, sum(map(len, rows)))

    def scores(self, a: Tensor) -> Tensor:
        """Products of projected queries (Nq, F) with every passage covered: (Nq, end) float32, whole numbers."""
        queries = self.maps.queries(a)
        return torch.cat([inner.products(queries, rows) for rows in self._rows], 1)

    @property
    def width(self) -> int:
        """R."""
        return len(self.maps.query)

    @cached_property
    def engine(self) -> Engine | None:
        """The engine, if there is one.

        Raises:
            FormatError, MissingError: for a file that is not as recorded.
            ModuleNotFoundError: saying how to install what it needs.
        """
        if self._engine is None:
            return None
        folder, record = self._engine
        record.check(folder)
        return FaissEngine(folder / record.name, self.end, self.width)

    def scan(self, a: Tensor, count: int, among: Tensor) -> tuple[Tensor, Tensor]:
        """The ``count`` best of each projected query (Nq, F), best first: products int32 and positions int64, (Nq, c).

        Args:
            among: ascending positions of those that may be chosen; c is their number where that is less than count.
        """
        kept = self._kept(among)
        if kept is not None and not bool(kept.any()):
            return torch.zeros(len(a), 0, dtype=torch.int32), torch.zeros(len(a), 0, dtype=torch.int64)
        return inner.topk(self.maps.queries(a), self._rows, min(count, self.end), kept)

    def asked(self, a: Tensor, count: int, among: Tensor) -> list[NDArray[np.int64]] | None:
        """Positions of the ``count`` best of each projected query (Nq, F) by the engine, best first; None without one.

        The engine may miss some, and those that may not be chosen (see :meth:`scan`) count among the ``count``.

        Raises:
            FormatError, MissingError, ModuleNotFoundError: as ``engine``.
        """
        if self.engine is None:
            return None
        kept = self._kept(among)
        found = self.engine.search(self.maps.queries(a), count)[1]
        return [row[(row >= 0) & (True if kept is None else kept.numpy()[row])] for row in found]

    def _kept(self, among: Tensor) -> Tensor | None:
        """Which of the passages covered are at some ascending positions: (end,) bool, None for all."""
        among = among[: int(torch.searchsorted(among, self.end))]
        # Of a part of an index none may be covered.
        if len(among) == self.end > 0:
            return None
        kept = torch.zeros(self.end, dtype=torch.bool)
        kept[among] = True
        return kept
