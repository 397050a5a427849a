"""What a student makes of sentence pairs and of answers: SICK and TREC-QA.

Each task is learnt by its training part with the defaults of ``d2llm train``, from a fresh student on the encoder that
the shipped one is on, once per seed: by the interaction module alone, on embeddings computed once, or with pooling and
LoRA. SICK has its training part alone here: a fifth of it is measured on and a tenth has the thresholds, apart by text.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PrinterCallback, ProgressCallback

from benchmarks.quality.asked import Asked
from d2llm.data.example import Example, text_id
from d2llm.data.pairs import THRESHOLDS, LabelledPairs, pairs_to_examples, read_pairs
from d2llm.demo.recipe import STUDENT as ARCHITECTURE
from d2llm.evaluation.metrics import per_query
from d2llm.evaluation.pair_systems import bm25_pairs, student_pairs
from d2llm.evaluation.pairs import fit_thresholds, nli_metrics, sts_metrics
from d2llm.evaluation.run import Run
from d2llm.evaluation.significance import Means, Scored, difference
from d2llm.files import atomic_path
from d2llm.shipped import STUDENT_MODEL
from d2llm.student import D2LLM
from d2llm.tasks import ASYM, SYM
from d2llm.training import DistillationTrainer, TrainConfig
from d2llm.training.start import fit_warm_start, run_data
from d2llm.training.vectors import TextVectors

PART = "sentence-pairs"
#: Shares of SICK's training part that are measured on, and that thresholds are fitted on.
MEASURED, FITTED = 0.2, 0.1
SEEDS = 3
#: Hard negatives an example brings where LoRA learns, which encodes them at every step.
LORA_NEGATIVES = 2

Pairs = Sequence[tuple[str, str]]


class Task(Protocol):
    """Pairs of texts with judgements, to learn from and to measure on."""

    task: str
    #: Pairs that systems score, and the metrics that are shown of the scores, the first of them compared.
    pairs: Pairs
    metrics: tuple[str, ...]

    def examples(self) -> list[Example]:
        """What is learnt from."""

    def measure(self, scores: np.ndarray) -> dict[str, float]:
        """Every metric of a system's scores of ``pairs``, (N,)."""

    def interval(self, scores: np.ndarray, others: np.ndarray) -> str:
        """95 % interval of the first metric, by bootstrap, paired: a system's over another's."""


class Graded:
    """SICK: does the first sentence entail the second, or how alike are they."""

    task = SYM

    def __init__(self, file: Path, kind: str) -> None:
        """Args: the table, and ``nli`` or ``sts``."""
        self.kind = kind
        self.metrics = ("ap", "accuracy") if kind == "nli" else ("spearman", "pearson")
        self.parts = _apart(read_pairs(file, kind))
        #: Those that thresholds are fitted on follow those that are measured on.
        self.pairs = [*self.parts[1].pairs, *self.parts[2].pairs]

    def examples(self) -> list[Example]:
        """See :class:`Task`."""
        return pairs_to_examples(*self.parts[0], THRESHOLDS[self.kind])

    def measure(self, scores: np.ndarray) -> dict[str, float]:
        """See :class:`Task`."""
        measured, labels = self._measured(scores)
        if self.kind == "sts":
            return sts_metrics(measured, labels)
        return nli_metrics(measured, labels, fit_thresholds(scores[len(labels) :], self.parts[2].labels))

    def interval(self, scores: np.ndarray, others: np.ndarray) -> str:
        """See :class:`Task`."""
        (first, labels), (second, _) = self._measured(scores), self._measured(others)
        metric = self.metrics[0]

        def value(some: np.ndarray, truth: np.ndarray) -> float:
            return (sts_metrics if self.kind == "sts" else nli_metrics)(some, truth)[metric]

        found = difference(Scored(first.astype(float), second.astype(float), labels, value), samples=1000)
        return f"{found.low:+.3f} to {found.high:+.3f}"

    def _measured(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(self.parts[1].labels)
        return scores[: len(labels)], labels


class Answers:
    """TREC-QA: which sentences answer a question. Questions with answers of one kind alone are not measured on."""

    task = ASYM
    metrics = ("map", "mrr")

    def __init__(self, folder: Path) -> None:
        """Args: the folder of ``train.csv`` and ``dev.csv``."""
        self.train, rows = (_answers(folder / f"{part}.csv") for part in ("train", "dev"))
        kinds: dict[str, set[int]] = {}
        for question, _, label in rows:
            kinds.setdefault(question, set()).add(label)
        self.rows = [row for row in rows if len(kinds[row[0]]) == 2]
        self.pairs = [(question, answer) for question, answer, _ in self.rows]

    def examples(self) -> list[Example]:
        """See :class:`Task`."""
        return pairs_to_examples([(q, a) for q, a, _ in self.train], [label for *_, label in self.train], 0.5, ASYM)

    def measure(self, scores: np.ndarray) -> dict[str, float]:
        """See :class:`Task`."""
        return {metric: float(values.mean()) for metric, values in self._of_questions(scores).items()}

    def interval(self, scores: np.ndarray, others: np.ndarray) -> str:
        """See :class:`Task`."""
        metric = self.metrics[0]
        found = difference(Means(self._of_questions(scores)[metric], self._of_questions(others)[metric]))
        return f"{found.low:+.3f} to {found.high:+.3f}"

    def _of_questions(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, dict[str, float]] = {}
        judged: dict[str, dict[str, int]] = {}
        # A sentence that a question has twice counts twice, as in trec_eval's files.
        for number, ((question, _, label), score) in enumerate(zip(self.rows, scores, strict=True)):
            found.setdefault(question, {})[str(number)] = float(score)
            judged.setdefault(question, {})[str(number)] = label
        return per_query(Run.of_mapping(found), judged, self.metrics)


def _answers(file: Path) -> list[tuple[str, str, int]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return [(row["qtext"], row["atext"], int(row["label"])) for row in csv.DictReader(lines)]


def _apart(found: LabelledPairs) -> list[LabelledPairs]:
    """The pairs to learn from, to measure on and to fit thresholds on; no two of these share a sentence."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for first, second in found.pairs:
        parent[root(first)] = root(second)
    groups: dict[str, list[int]] = {}
    for number, (first, _) in enumerate(found.pairs):
        groups.setdefault(root(first), []).append(number)
    chosen: list[list[int]] = [[], [], []]
    for group in sorted(groups.values(), key=lambda group: text_id(min(found.pairs[i][0] for i in group))):
        room = [
            share * len(found.pairs) - len(some) for share, some in zip((MEASURED, FITTED), chosen[1:], strict=True)
        ]
        part = next((i + 1 for i, left in enumerate(room) if len(group) <= left), 0)
        chosen[part].extend(group)
    return [LabelledPairs([found.pairs[i] for i in some], [found.labels[i] for i in some]) for some in chosen]


@dataclass(frozen=True)
class Measured:
    """Scores of a task's pairs by system and seed, kept in a folder."""

    folder: Path

    def scores(self, name: str, system: str, seed: int, make: Callable[[], dict[str, np.ndarray]]) -> np.ndarray:
        """(N,) scores of a system; where they are not kept, ``make`` gives those of it and of others by name."""
        if not self._file(name, system, seed).is_file():
            for each, scores in make().items():
                with atomic_path(self._file(name, each, seed)) as target, open(target, "wb") as file:
                    np.save(file, scores, allow_pickle=False)
        return np.load(self._file(name, system, seed), allow_pickle=False)

    def _file(self, name: str, system: str, seed: int) -> Path:
        return self.folder / name / f"{system}-{seed}.npy"


def learnt(task: Task, seed: int, folder: Path, base: str | None) -> dict[str, np.ndarray]:
    """Scores of ``task`` by a student that has learnt from its examples, with the defaults, and by its start.

    Args:
        task: what is learnt.
        seed: of the start and of the run.
        folder: of the run's checkpoints.
        base: None trains the interaction module alone; a name is put before the system's whose LoRA learns too.
    """
    student = D2LLM.create(STUDENT_MODEL, seed=seed, **ARCHITECTURE)
    config = TrainConfig(str(folder), STUDENT_MODEL)
    config = replace(config, run=replace(config.run, seed=seed, gradient_checkpointing=False))
    if base is not None:
        config = replace(config, data=replace(config.data, negatives=LORA_NEGATIVES))
    data = run_data(task.examples(), config.data, seed)
    vectors = TextVectors.encode(student, [*data.train, *(data.held_out or ())]) if base is None else None
    fit_warm_start(student, data.train, seed, vectors)
    start = student_pairs(student, task.pairs, task.task)
    trainer = DistillationTrainer(student, config, data.train, data.validation, vectors=vectors)
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    trainer.train()
    cosine, logits = student_pairs(student.eval(), task.pairs, task.task)
    if base is None:
        return {"start, cosine": start[0], "start, IEM": start[1], "module trained, IEM": logits}
    return {f"{base}, cosine": cosine, f"{base}, IEM": logits}


def rows(task: Task, name: str, measured: Measured, folder: Path) -> list[str]:
    """Markdown lines of a task: every metric's mean and spread, and the first one's interval over the first row."""

    def shipped() -> dict[str, np.ndarray]:
        cosine, logits = student_pairs(D2LLM.from_pretrained(folder), task.pairs, task.task)
        return {"shipped, cosine": cosine, "shipped, IEM": logits, "BM25": bm25_pairs(task.pairs)}

    def module(seed: int) -> dict[str, np.ndarray]:
        return learnt(task, seed, measured.folder / "runs" / f"{name}-module-{seed}", None)

    def whole(seed: int) -> dict[str, np.ndarray]:
        return learnt(task, seed, measured.folder / "runs" / f"{name}-lora-{seed}", "LoRA trained")

    systems: dict[str, tuple[int, Callable[[int], dict[str, np.ndarray]]]] = {
        "start, cosine": (1, module),
        "start, IEM": (SEEDS, module),
        "module trained, IEM": (SEEDS, module),
        "LoRA trained, cosine": (SEEDS, whole),
        "LoRA trained, IEM": (SEEDS, whole),
        **{each: (1, lambda _: shipped()) for each in ("shipped, cosine", "shipped, IEM", "BM25")},
    }
    lines = [
        f"| system | {' | '.join(task.metrics)} | over the first, 95 % |",
        f"| --- |{' ---: |' * (1 + len(task.metrics))}",
    ]
    first: np.ndarray | None = None
    for system, (count, make) in systems.items():
        scores = [measured.scores(name, system, seed, lambda: make(seed)) for seed in range(count)]  # noqa: B023
        values = [task.measure(each) for each in scores]
        cells = [_cell([each[metric] for each in values]) for metric in task.metrics]
        over = "" if first is None else task.interval(scores[0], first)
        first = scores[0] if first is None else first
        lines.append(f"| {system} | {' | '.join(cells)} | {over} |")
    return lines


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not measured yet, of the data that are given: a table a task."""
    tasks: dict[str, Task] = {}
    if asked.sick is not None:
        tasks |= {f"sick-{kind}": Graded(asked.sick, kind) for kind in ("nli", "sts")}
    if asked.trecqa is not None:
        tasks["trecqa"] = Answers(asked.trecqa)
    measured = Measured(asked.work / PART)
    return {name: rows(tasks[name], name, measured, asked.student) for name in asked.chosen(tasks)}
