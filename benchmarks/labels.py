"""Labels that a teacher finds, held against hidden ones: ``python -m benchmarks.labels``.

Queries are held-out docstrings of the standard library, whose functions are the passages: some whose labels are known,
on which the shipped teacher is calibrated, and others whose labels are hidden. Candidates are BM25's and the shipped
student's. A found label counts as right where it is the hidden one, so that another function that answers the query
counts as wrong.
"""

import argparse
import time
from pathlib import Path

import torch

from d2llm.data.docstrings import hold_out, standard_library_pairs
from d2llm.data.example import Example, text_id
from d2llm.data.positives import text_key
from d2llm.demo.library import library_vectors
from d2llm.evaluation.scorers import Vectors, iem_scorer
from d2llm.shipped import STUDENT, TEACHER
from d2llm.student import D2LLM
from d2llm.tasks import ASYM
from d2llm.teacher.calibration import Calibrated, Labelled
from d2llm.teacher.labelling import Cuts, find_candidates, known, label, pairs_of
from d2llm.teacher.model import Teacher
from d2llm.teacher.scoring import collect, plan_pairs, score

#: Least probabilities of a positive.
CUTS = (0.3, 0.5, 0.7, 0.9)


def shares(found: list[Example], hidden: dict[str, set[str]]) -> str:
    """Precision and recall of the positives of examples, as cells of a table."""
    pairs = {(example.query, text_key(example.positive)) for example in found}
    right = sum(passage in hidden[query] for query, passage in pairs)
    answered = len({example.query for example in found})
    return (
        f"{len(pairs)} | {right / max(1, len(pairs)):.3f} | {right / sum(map(len, hidden.values())):.3f} | {answered}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--labelled", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--shards", type=Path, required=True, help="folder for what the teacher judges")
    asked = parser.parse_args()
    pairs = standard_library_pairs()
    library = list(dict.fromkeys(pair.positive for pair in pairs))
    _, held_out = hold_out(pairs)
    positives: dict[str, set[str]] = {}
    for pair in held_out:
        positives.setdefault(pair.query, set()).add(text_key(pair.positive))
    every = list(positives)[: asked.labelled + asked.queries]
    few, hidden = every[: asked.labelled], every[asked.labelled :]
    student = D2LLM.from_pretrained(STUDENT)
    vectors = Vectors(
        student.encode(every, "query", convert_to="torch"), torch.from_numpy(library_vectors(student, library))
    )
    scorer = iem_scorer("student", student.iem, vectors)
    found = dict(zip(every, find_candidates(every, library, asked.candidates, [scorer]), strict=True))
    teacher = Teacher.from_pretrained(adapter=TEACHER)
    begun = time.perf_counter()
    work = list(plan_pairs(pairs_of(every, list(found.values())), ASYM, 256))
    table = collect(score(teacher, work, asked.shards))
    print(f"{len(table)} pairs judged, {len(table) / (time.perf_counter() - begun):.1f} a second")
    known_pairs = [pair for pair in held_out if pair.query in set(few)]
    calibrated = Calibrated.of(Labelled.of(known(known_pairs, [found[pair.query] for pair in known_pairs]), table))
    print(calibrated)
    labels = {query: positives[query] for query in hidden}
    reached = sum(len(labels[query] & {text_key(text) for text in found[query]}) for query in hidden)
    print(f"{reached} of {sum(map(len, labels.values()))} hidden labels are among the candidates")
    print("| least probability | positives | precision | recall | queries with one |\n|---:|---:|---:|---:|---:|")
    for cut in CUTS:
        examples, report = label(
            hidden,
            [found[query] for query in hidden],
            table,
            calibrated.calibration,
            Cuts(cut, min(0.2, cut / 2)),
            negatives=8,
            task=ASYM,
        )
        print(f"| {cut} | {shares(examples, labels)} of {report.queries} |", flush=True)
        if cut == CUTS[1]:
            print(report)
    best = [
        max(found[query], key=lambda text, q=query: _margin(table.logits(text_id(q), text_id(text))))
        for query in hidden
    ]
    right = sum(text_key(text) in labels[query] for query, text in zip(hidden, best, strict=True))
    print(f"the teacher's first candidate is a hidden label for {right} of {len(hidden)} queries")


def _margin(logits: tuple[float, float] | None) -> float:
    return float("-inf") if logits is None else logits[0] - logits[1]


if __name__ == "__main__":
    main()
