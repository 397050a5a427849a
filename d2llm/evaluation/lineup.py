"""The systems of a table by name: ``bm25,cosine,iem,hybrid,MiniLM=st:all-MiniLM-L6-v2,cross:NAME,teacher``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from d2llm.errors import InputError

if TYPE_CHECKING:
    from d2llm.student import D2LLM
    from d2llm.teacher.model import Teacher

#: Systems that a student makes possible.
OF_STUDENTS = ("untrained", "cosine", "iem", "hybrid")
#: Systems of a model: its mean-pooled states, sentence-transformers, a cross-encoder that re-ranks.
OTHERS = ("mean", "st", "cross")
TEACHER = "teacher"
EXPECTED = ", ".join(["bm25", *OF_STUDENTS, TEACHER, *(f"[NAME=]{kind}:MODEL" for kind in OTHERS)])

BM25_ROW, MEAN_POOL_ROW = "BM25", "untrained LLM, mean-pool cosine"


@dataclass(frozen=True)
class System:
    """One item of a list of systems."""

    kind: str
    #: What its row is called, where it was given or follows from the model.
    name: str = ""
    model: str = ""

    @property
    def reranks(self) -> bool:
        """Whether it judges what another system found."""
        return self.kind in (TEACHER, "cross")


@dataclass(frozen=True)
class Lineup:
    """Who takes part.

    Students of one name are the same system trained with several seeds, and share a row.

    Raises:
        InputError: as :func:`check`.
    """

    systems: tuple[System, ...]
    students: "tuple[tuple[str, D2LLM], ...]" = ()
    teacher: "Teacher | None" = None
    #: Whose best passages the teacher and cross-encoders re-rank, by kind or name of the row.
    first_stages: tuple[str, ...] = ("iem",)
    #: Names of runs of others, which may be first stages too.
    runs: tuple[str, ...] = ()
    #: What BM25 weighs in the hybrid; by default what each student keeps.
    bm25_weight: float | None = None

    def __post_init__(self) -> None:
        check(self.systems, bool(self.students), self.teacher is not None, self.first_stages, self.runs)

    def labels(self) -> list[str]:
        """Names of the students, each once."""
        return list(dict.fromkeys(label for label, _ in self.students))


def check(
    systems: Sequence[System], students: bool, teacher: bool, first_stages: Sequence[str], runs: Sequence[str] = ()
) -> None:
    """Make sure that there is what the systems need.

    Raises:
        InputError: for no system, one that lacks its student or teacher, or an unknown first stage.
    """
    if not systems:
        raise InputError("--systems: expected at least one, got none")
    for system in systems:
        if system.kind in OF_STUDENTS and not students:
            raise InputError(f"--systems: {system.kind} needs a student, and none is given")
        if system.kind == TEACHER and not teacher:
            raise InputError(f"--systems: {TEACHER} needs --adapter or --teacher-model, and neither is given")
    stages = [each for system in systems if not system.reranks for each in (system.kind, system.name) if each] + [*runs]
    if unknown := [stage for stage in first_stages if stage not in stages]:
        there = ", ".join(dict.fromkeys(stages))
        raise InputError(f"--first-stage: expected one of {there}, which are among the systems, got {unknown[0]!r}")


def default_systems(students: bool, teacher: bool, pairs: bool) -> tuple[System, ...]:
    """All systems that need no model of others; a hybrid is none for pairs."""
    kinds = ["bm25", *(OF_STUDENTS if students else ()), *([TEACHER] if teacher else ())]
    return tuple(System(kind) for kind in kinds if not (pairs and kind == "hybrid"))


def parse_systems(items: Sequence[str]) -> tuple[System, ...]:
    """Systems of lists such as ``bm25,iem`` and items such as ``MiniLM=mean:FOLDER``, in order, each once.

    Raises:
        InputError: for an unknown one.
    """
    names = [name.strip() for item in items for name in item.split(",") if name.strip()]
    return tuple(dict.fromkeys(map(_system, names)))


def _system(item: str) -> System:
    if item in ("bm25", *OF_STUDENTS, TEACHER):
        return System(item)
    name, equals, rest = item.partition("=")
    kind, _, model = (rest if equals else item).partition(":")
    if kind not in OTHERS or not model:
        raise InputError(f"--systems: expected some of {EXPECTED}, got {item[:200]!r}")
    return System(kind, name if equals else PurePath(model).name, model)


def own_name(kind: str, label: str, weight: float = 0) -> str:
    """What a row of a student is called."""
    return {
        "cosine": f"{label} cosine",
        "iem": f"{label} IEM",
        "hybrid": f"{label} IEM + {weight:g} BM25",
    }[kind]
