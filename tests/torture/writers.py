"""What is written to disk, each as a state, a plan of the next one, and a writer: for kills, full disks, lost power.

A write of number n brings the state ``before`` to ``plan(before, n)``. Whatever interrupts it, one of them is there.
"""

import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from d2llm.data.example import text_id
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.errors import MissingError
from d2llm.index import Index
from d2llm.mining import mine_negatives
from d2llm.student import D2LLM
from d2llm.student.weights import read_weights
from d2llm.teacher.model import Teacher
from d2llm.teacher.scores import ScoreTable
from d2llm.teacher.scoring import plan_groups, score
from d2llm.training.run import last_whole
from tests.conftest import save_base
from tests.index.index_fakes import DIM, WordEncoder

HERE = Path(__file__).parent
# Modules of other tests, which find each other by these folders.
sys.path += [str(HERE.parent / "training"), str(HERE.parent / "teacher")]
from interrupted_run import run as train  # noqa: E402
from teacher_models import save_model  # noqa: E402
from training_setup import make_examples  # noqa: E402


class Whole:
    """What is replaced as a whole: an interrupted write leaves what was, or what was to be."""

    @staticmethod
    def fits(before: Any, after: Any, found: Any) -> bool:
        return found in (before, after)


class Growing:
    """What grows: an interrupted write leaves all that was, and some of what was to be."""

    @staticmethod
    def fits(before: Any, after: Any, found: Any) -> bool:
        return before <= found <= after


class IndexWriter(Whole):
    """Builds, appends, upserts, deletes, compacts, fits a surrogate; the state is the index's ids."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index"

    def state(self) -> tuple[str, ...] | None:
        try:
            index = Index.open(self.path, WordEncoder(), verify=True)
        except MissingError as error:
            if "its build has not finished" in str(error):
                return None
            raise
        (hits,) = index.search("red", len(index))
        ids = index.ids()
        assert sorted(hit.id for hit in hits) == sorted(ids) and all(hit.text == f"red {hit.id}" for hit in hits)
        return tuple(ids)

    def plan(self, before: tuple[str, ...] | None, number: int) -> tuple[str, ...]:
        kind, ids = self._step(before, number)
        left = () if kind == "build" else tuple(name for name in before or () if name not in ids)
        return left if kind == "delete" else (*left, *ids)

    def write(self, before: tuple[str, ...] | None, number: int) -> None:
        kind, ids = self._step(before, number)
        texts = [f"red {name}" for name in ids]
        vectors = np.random.default_rng(number).standard_normal((len(ids), DIM), np.float32)
        options = {"ids": ids, "vectors": vectors, "shard_size": number % 13 + 3, "progress": False}
        if kind == "build":
            Index.build(WordEncoder(), texts, self.path, overwrite=True, **options)
            return
        index = Index.open(self.path, WordEncoder())
        if kind == "compact":
            index.compact(shard_size=number % 13 + 3)
        elif kind == "delete":
            index.delete(ids)
        elif kind == "fit":
            index.fit_surrogate(rank=4, progress=False)
        else:
            index.append(texts, upsert=kind == "upsert", **options)

    def _step(self, before: tuple[str, ...] | None, number: int) -> tuple[str, list[str]]:
        """What a write does, and the ids of the passages that it adds or deletes."""
        generator = random.Random(number)
        fresh = [f"{number}-{i}" for i in range(generator.randrange(2, 25))]
        # To fit takes as long as all the others together.
        kind = generator.choice(("build", "append", "delete", "upsert", "compact") * 4 + ("fit",))
        if before is None or kind == "build" or len(before) > 100:
            return "build", fresh
        if len(before) < 4:
            return "append", fresh
        some = generator.sample(before, generator.randrange(1, len(before)))
        return kind, {"append": fresh, "delete": some, "upsert": fresh + some}.get(kind, [])


class MinedWriter(Whole):
    """Mined examples in a file; the state is what it holds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mined.jsonl"

    def state(self) -> Any:
        return read_examples(self.path) if self.path.exists() else None

    def plan(self, before: Any, number: int) -> Any:
        examples = make_examples()
        passages = [example.positive for example in examples]
        return mine_negatives(examples, passages, 4, "bm25", bm25_top=10, fill=True, seed=number)

    def write(self, before: Any, number: int) -> None:
        write_examples(self.path, self.plan(before, number))


class ScoresWriter(Whole):
    """A table of scores; the state is the number that it was made with."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "scores.safetensors"

    def state(self) -> int | None:
        if not self.path.exists():
            return None
        (number,) = {yes for _, (yes, _) in ScoreTable.load(self.path).items()}
        return int(number)

    def plan(self, before: int | None, number: int) -> int:
        return number % 10_000

    def write(self, before: int | None, number: int) -> None:
        pairs = {(text_id(f"q{i}"), text_id("p")): (float(number % 10_000), 0.0) for i in range(200)}
        ScoreTable({"model": "m"}, pairs).save(self.path)


class StudentWriter(Whole):
    """A student's folder; the state is the number that fills its weights."""

    def __init__(self, folder: Path) -> None:
        # Beside what is written, as a base is.
        self.base, self.path = folder.parent / "base", folder / "student"

    def state(self) -> int | None:
        if not (self.path / "config.json").exists():
            return None
        (number,) = {
            float(value)
            for tensor in read_weights(self.path / "model.safetensors").values()
            for value in tensor.flatten()
        }
        D2LLM.from_pretrained(self.path)
        return int(number)

    def plan(self, before: int | None, number: int) -> int:
        # The base is there before what counts.
        _student(self.base)
        return number % 10_000

    def write(self, before: int | None, number: int) -> None:
        student = _student(self.base)
        for value in student.trainable_state().values():
            value.fill_(number % 10_000)
        student.save_pretrained(self.path)


@cache
def _student(base: Path) -> D2LLM:
    if not (base / "config.json").exists():
        save_base(base)
    return D2LLM.create(base, lora_r=2, iem_hidden=4, lora_targets=["q_proj"])


class TeachWriter(Growing):
    """A teacher's scores in shards; the state is which are there, all of them whole and none of them lost."""

    def __init__(self, folder: Path) -> None:
        self.llm, self.path = folder / "llm", folder / "shards"

    def state(self) -> frozenset[str]:
        files = list(self.path.glob("*.safetensors"))
        assert all(len(ScoreTable.load(file)) for file in files)
        return frozenset(file.name for file in files)

    def plan(self, before: frozenset[str], number: int) -> frozenset[str]:
        teacher = _teacher(self.llm)
        return frozenset(f"{work.key(teacher.header())}.safetensors" for work in self._work(number)) | before

    def write(self, before: frozenset[str], number: int) -> None:
        score(_teacher(self.llm), self._work(number), self.path, show_progress=False)

    @staticmethod
    def _work(number: int) -> list[Any]:
        return list(plan_groups(random.Random(number // 8).sample(make_examples(), 6), shard_pairs=4))


@cache
def _teacher(folder: Path) -> Teacher:
    if not (folder / "config.json").exists():
        save_model(folder)
    return Teacher.from_pretrained(folder)


class TrainWriter(Growing):
    """A run that is resumed until it is done; the state is the step of its newest whole checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.base, self.path = folder / "train-base", folder / "run"

    def state(self) -> int:
        if not (self.base / "config.json").exists():
            save_base(self.base)
        newest = last_whole(self.path)
        return int(newest.name.rpartition("-")[2]) if newest else 0

    def plan(self, before: int, number: int) -> int:
        return 14

    def write(self, before: int, number: int) -> None:
        if before == 14 and (self.path / "fingerprint-0").exists():
            return
        train(str(self.base), self.path, resume=True)


WRITERS: dict[str, Any] = {
    "index": IndexWriter,
    "mine": MinedWriter,
    "scores": ScoresWriter,
    "student": StudentWriter,
    "teach": TeachWriter,
    "train": TrainWriter,
}
