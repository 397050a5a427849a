"""What a run of the program is asked to do."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.quality.sets import TESTS
from d2llm.shipped import STUDENT


@dataclass(frozen=True)
class Asked:
    """Where its data and its results lie, and what of a part it measures."""

    #: Folder of what has been trained, judged and measured.
    work: Path
    #: Folder of CoSQA's codes.json and dev.json, which is not shipped.
    cosqa: Path | None = None
    #: SICK_train.txt, which is not shipped.
    sick: Path | None = None
    #: Folder of TREC-QA's train.csv and dev.csv, which are not shipped.
    trecqa: Path | None = None
    #: The student that is measured.
    student: Path = STUDENT
    #: Further ones by name, for the tables of students.
    others: dict[str, Path] = field(default_factory=dict)
    #: Names of a part's sets or arms, to measure these alone.
    only: tuple[str, ...] = ()
    #: Measure on what no setting is chosen by, too.
    tests: bool = False

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of these sets that are measured now: of ``only`` if it names any, of ``TESTS`` if asked for."""
        return [name for name in names if name in self.only or not (self.only or (name in TESTS and not self.tests))]
