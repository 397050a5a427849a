"""A student on the LLM itself: ``python -m d2llm.demo.llm OUT`` makes it from the shipped teacher's scores, in hours.

It is the paper's setting, the LLM its own student, and not the shipped one. Killed, it goes on where it was.
"""

import argparse
from pathlib import Path

import torch

from d2llm.data.docstrings import hold_out, package_pairs, standard_library_pairs, without
from d2llm.demo.data import load_data
from d2llm.demo.recipe import LLM_DISTIL, LLM_DOMAIN, LLM_MIXED, LLM_PACKAGES, LLM_STUDENT, SCORED_EXAMPLES
from d2llm.demo.training import train_phase
from d2llm.shipped import BASE_MODEL, SCORES
from d2llm.student import D2LLM
from d2llm.teacher.scores import ScoreTable
from d2llm.training.vectors import TextVectors


def make(out: Path) -> None:
    """Train the student on the in-batch loss, distil the teacher into its interaction module, write ``out/student``."""
    train, held_out = hold_out(standard_library_pairs())
    mixed = list(train)
    for package in LLM_PACKAGES:
        mixed += without(package_pairs(package), held_out)
    student = D2LLM.create(BASE_MODEL, **LLM_STUDENT)
    train_phase(student, LLM_MIXED, mixed, out / "mixed", resume=True)
    train_phase(student, LLM_DOMAIN, train, out / "domain", resume=True)
    data = load_data()
    examples = data.mined(SCORED_EXAMPLES)
    vectors = TextVectors.encode(student, examples, passages=data.library)
    scores = ScoreTable.load(SCORES)
    train_phase(student, LLM_DISTIL, examples, out / "distilled", teacher=scores, vectors=vectors, resume=True)
    student.save_pretrained(out / "student", head_dtype=torch.int8)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m d2llm.demo.llm", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder of the student and its checkpoints")
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
