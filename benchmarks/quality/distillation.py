"""What each part of a distillation is worth, one change at a time.

A new interaction module on the shipped student's encoder, which stays as it is, learns from the groups that the shipped
teacher has scored, several seeds an arm. It is measured on the validation sets that need nothing else: docstrings and
everyday questions over the whole standard library. No group has a text of theirs as its query or positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.defaults import Labels
from benchmarks.quality.asked import Asked
from benchmarks.quality.sets import sets
from d2llm.data.docstrings import standard_library_functions
from d2llm.data.example import Example, text_id, text_key
from d2llm.data.validation import Validation
from d2llm.demo.corpus import unseen_texts
from d2llm.demo.data import load_data
from d2llm.demo.library import library_vectors
from d2llm.demo.recipe import SCORED_EXAMPLES, Phase
from d2llm.demo.recipe import STUDENT as ARCHITECTURE
from d2llm.demo.training import train_phase
from d2llm.evaluation.significance import Means, difference
from d2llm.evaluation.systems import iem_scores
from d2llm.files import atomic_path
from d2llm.loss_weights import LossWeights
from d2llm.shipped import SCORES, STUDENT, STUDENT_MODEL
from d2llm.student import D2LLM
from d2llm.tasks import ASYM, task_index
from d2llm.teacher.model import NO, YES
from d2llm.teacher.scores import ScoreTable
from d2llm.training.start import fit_warm_start
from d2llm.training.vectors import TextVectors

PART = "distillation"
SEEDS = 3
SETS = ("docstrings", "everyday")
_FULL = LossWeights(in_batch_temperature=0.3)
_IN_BATCH = replace(_FULL, alpha=0.0, beta=0.0, gamma=0.0, eta=0.0, labels=0.0)


@dataclass(frozen=True)
class Arm:
    """One way to learn."""

    loss: LossWeights = _FULL
    #: ``teacher``, ``labels`` (1 and 0 in place of its scores) or ``ensemble`` (the teacher and the start together).
    judge: str = "teacher"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 60
    #: Share of the scored groups.
    share: float = 1.0

    def phase(self, seed: int) -> Phase:
        """The run."""
        return Phase(self.steps, lr=5e-4, batch_size=64, negatives=8, warmup_steps=6, seed=seed, loss=self.loss)


#: The first is what the others are held against.
ARMS: dict[str, Arm] = {
    "all five losses": Arm(),
    "not trained": Arm(steps=0),
    "without in-batch": Arm(replace(_FULL, in_batch=0.0)),
    "without contrastive imitation": Arm(replace(_FULL, alpha=0.0)),
    "without rank imitation": Arm(replace(_FULL, beta=0.0)),
    "without pairwise rank imitation": Arm(replace(_FULL, gamma=0.0)),
    "without feature imitation": Arm(replace(_FULL, eta=0.0)),
    "in-batch alone": Arm(_IN_BATCH),
    "labels in place of the teacher": Arm(judge="labels"),
    "teacher and start in place of the teacher": Arm(judge="ensemble"),
    "xavier start": Arm(architecture={"init": "xavier"}),
    **{f"F = {width}": Arm(architecture={"iem_hidden": width}) for width in (128, 256)},
    **{f"{steps} steps": Arm(steps=steps) for steps in (30, 120)},
    **{f"{share:.0%} of the scored groups": Arm(share=share) for share in (0.25, 0.5)},
}


class Ensemble:
    """Scores of the teacher and of another scorer together: the mean of both z-scores, at the teacher's scale."""

    def __init__(self, table: ScoreTable, examples: Sequence[Example], others: Mapping[tuple[str, str], float]) -> None:
        pairs = [(text_id(e.query), text_id(p)) for e in examples for p in e.passages]
        judged = [logits for pair in pairs if (logits := table.logits(*pair)) is not None]
        margins = np.array([logits[YES] - logits[NO] for logits in judged])
        second = np.array([others[pair] for pair in pairs])
        self._table, self._others, self.header = table, others, table.header
        self._scale = margins.std() / second.std()
        self._offset = margins.mean() - self._scale * second.mean()

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float] | None:
        """Logits whose difference is the mean of the two, None for a pair that the teacher has not judged."""
        found = self._table.logits(query_id, passage_id)
        if found is None:
            return None
        other = self._offset + self._scale * self._others[query_id, passage_id]
        quarter = (other - (found[YES] - found[NO])) / 4
        return found[YES] + quarter, found[NO] - quarter

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        """The teacher's."""
        return self._table.relation(query_id, passage_ids)


@dataclass(frozen=True)
class Setting:
    """What all arms have in common: groups, judges, what is measured on, and every text's embedding."""

    groups: list[Example]
    judges: dict[str, Any]
    data: dict[str, Validation]
    vectors: TextVectors

    @classmethod
    def make(cls) -> "Setting":
        """The setting of the table; embedding it takes minutes."""
        demo, unseen = load_data(), unseen_texts(standard_library_functions())
        groups = [
            each
            for each in demo.mined(SCORED_EXAMPLES)[:SCORED_EXAMPLES]
            if text_key(each.query) not in unseen and text_key(each.positive) not in unseen
        ]
        data = {name: sets(None)[name]() for name in SETS}
        encoder, student = D2LLM.from_pretrained(STUDENT), start(Arm(), 0)
        asked = [query for each in data.values() for query in each.queries]
        queries = list(dict.fromkeys([*asked, *(each.query for each in groups)]))
        passages = torch.from_numpy(library_vectors(encoder, demo.library))
        vectors = TextVectors((queries, encoder.encode(queries, "query", convert_to="torch")), (demo.library, passages))
        fit_warm_start(student, groups, 0, vectors)
        pairs = [(each.query, passage) for each in groups for passage in each.passages]
        scores = iem_pairs(student, vectors, pairs)
        known = {(text_id(q), text_id(p)): float(z) for (q, p), z in zip(pairs, scores, strict=True)}
        table = ScoreTable.load(SCORES)
        judges = {"teacher": table, "labels": Labels(groups), "ensemble": Ensemble(table, groups, known)}
        return cls(groups, judges, data, vectors)

    def ranks(self, arm: Arm, seed: int, folder: Path) -> dict[str, np.ndarray]:
        """1 / (rank of the best relevant passage) of every query by the module of an arm, (Nq,) a set."""
        student = start(arm, seed)
        groups = self.groups[: round(arm.share * len(self.groups))]
        fit_warm_start(student, groups, seed, self.vectors)
        if arm.steps:
            train_phase(student, arm.phase(seed), groups, folder, teacher=self.judges[arm.judge], vectors=self.vectors)
        return {name: self._measured(student, data) for name, data in self.data.items()}

    def _measured(self, student: D2LLM, data: Validation) -> np.ndarray:
        made = self.vectors.queries(data.queries), self.vectors.passages(data.passages)
        return data.reciprocal_ranks(iem_scores(student, *made, data.task))


def start(arm: Arm, seed: int) -> D2LLM:
    """The student that an arm starts from."""
    return D2LLM.create(STUDENT_MODEL, seed=seed, **{**ARCHITECTURE, "base_dtype": "float32", **arm.architecture})


def iem_pairs(student: D2LLM, vectors: TextVectors, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(N,) logits of pairs."""
    queries, passages = zip(*pairs, strict=True)
    with torch.inference_mode():
        logits = student.iem(vectors.queries(queries), vectors.passages(passages), task_index(ASYM))
    return logits.numpy()


def table(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Markdown lines of reciprocal ranks (seeds, Nq) by arm and set."""
    lines = [
        f"| arm | {' | '.join(f'{name} | over the first, 95 %' for name in SETS)} |",
        f"| --- |{' ---: | ---: |' * len(SETS)}",
    ]
    first = next(iter(found.values()))
    for arm, ranks in found.items():
        cells = []
        for name in SETS:
            means = ranks[name].mean(1)
            over = difference(Means(ranks[name].mean(0), first[name].mean(0)))
            cells.append(f"{means.mean():.3f} ± {means.std(ddof=1):.3f}")
            cells.append("" if ranks is first else f"{over.low:+.3f} to {over.high:+.3f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def blocks(asked: Asked) -> dict[str, list[str]]:
    """Train and measure what is not measured yet: one table of every arm that is."""
    setting: Setting | None = None
    folder = asked.work / PART
    for name in asked.only or ARMS:
        for seed in range(SEEDS):
            files = _files(folder, name, seed)
            if all(file.is_file() for file in files.values()):
                continue
            setting = setting or Setting.make()
            for each, ranks in setting.ranks(ARMS[name], seed, folder / "run").items():
                with atomic_path(files[each]) as target, open(target, "wb") as file:
                    np.save(file, ranks, allow_pickle=False)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ARMS:
        kept = [_files(folder, name, seed) for seed in range(SEEDS)]
        if all(file.is_file() for files in kept for file in files.values()):
            found[name] = {
                each: np.stack([np.load(files[each], allow_pickle=False) for files in kept]) for each in SETS
            }
    return {PART: table(found)}


def _files(folder: Path, name: str, seed: int) -> dict[str, Path]:
    """Where the ranks of an arm lie, by set."""
    return {each: folder / "ranks" / each / f"{name}-{seed}.npy" for each in SETS}
