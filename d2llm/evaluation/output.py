"""Everything behind a table as files: runs, judgements, every metric of every query."""

import re
from collections.abc import Mapping
from pathlib import Path

from d2llm.evaluation.measure import Measured
from d2llm.evaluation.metrics import Qrels
from d2llm.evaluation.scorers import Found
from d2llm.evaluation.trec import write_qrels, write_run
from d2llm.files import atomic_path


def write_all(folder: Path, found: Mapping[str, Found], qrels: Qrels, measured: Measured) -> None:
    """Write ``runs/SYSTEM.trec``, ``qrels.trec``, ``per-query.tsv`` and ``table.json``.

    A second seed of a system is ``SYSTEM-2.trec``.

    Raises:
        InputError: for an id with white space in it, which these files cannot hold.
    """
    write_qrels(folder / "qrels.trec", qrels)
    for name, each in found.items():
        for number, run in enumerate(each.runs, start=1):
            stem = file_name(name) + (f"-{number}" if number > 1 else "")
            write_run(folder / "runs" / f"{stem}.trec", run, name)
    with atomic_path(folder / "per-query.tsv") as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write("query\tsystem\tmetric\tvalue\n")
        for name, metrics in measured.per_query.items():
            for metric, values in metrics.items():
                rows = zip(measured.queries, values.tolist(), strict=True)
                handle.writelines(f"{query}\t{name}\t{metric}\t{value!r}\n" for query, value in rows)
    measured.table.save(folder / "table.json")


def file_name(system: str) -> str:
    """The name of a system as that of a file: ``student IEM + 0.2 BM25`` gives ``student-IEM-0.2-BM25``."""
    return re.sub(r"[^\w.]+", "-", system).strip("-.") or "system"
