"""The shipped teacher: tuned in one go to tell answers from what its student, BM25 and chance take for them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from d2llm.data.docstrings import standard_library_pairs
from d2llm.data.example import Example
from d2llm.demo.recipe import TEACHER
from d2llm.mining import mine_negatives, student_vectors
from d2llm.shipped import BASE_MODEL
from d2llm.student import D2LLM
from d2llm.teacher.groups import make_groups
from d2llm.teacher.model import Teacher
from d2llm.teacher.tuning import tune

#: In a teacher's folder: its two tunings.
FIRST, SECOND = "first", "second"


def halves(examples: Sequence[Example], seed: int = 0) -> tuple[list[Example], list[Example]]:
    """The standard library's docstrings, and as many queries of any kind that ask for functions of other packages.

    Args:
        examples: what the student learnt from.
    """
    of_library = {(pair.query, pair.positive) for pair in standard_library_pairs()}
    passages = {positive for _, positive in of_library}
    library = [example for example in examples if (example.query, example.positive) in of_library]
    others = [example for example in examples if example.positive not in passages]
    return library, random.Random(seed).sample(others, min(len(library), len(others)))


def mistakes(student: D2LLM, examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Groups of a positive, two of the student's best, a random negative and one of BM25's best, in that order."""
    near, easy, hard = TEACHER.near, TEACHER.easy, TEACHER.hard
    corpus = list(dict.fromkeys(example.positive for example in examples))
    queries, passages = student_vectors(student, examples, corpus)
    mined = mine_negatives(
        examples,
        corpus,
        near,
        "vectors",
        vector_top=TEACHER.pool,
        query_vectors=queries,
        passage_vectors=passages,
        seed=seed,
    )
    # As many more of BM25's as may be the student's too.
    drawn = {
        (group.query, group.positive): group.negatives
        for group in make_groups(examples, corpus, hard=near + hard, easy=easy, seed=seed)
    }
    made = []
    for example in mined:
        lexical = drawn.get((example.query, example.positive), ())
        negatives = tuple(dict.fromkeys((*example.negatives, *lexical[near + hard :], *lexical)))[: near + easy + hard]
        if len(negatives) == near + easy + hard:
            made.append(replace(example, negatives=negatives))
    return made


def tune_teacher(
    student: D2LLM,
    examples: Sequence[Example],
    out: Path,
    callbacks: Callable[[Teacher], Sequence[TrainerCallback]] = lambda _: (),
) -> Teacher:
    """The teacher, tuned on groups of these examples: at first on any, then on the student's mistakes.

    Checkpoints lie in ``out``, from which it goes on. Callbacks are of the second stage.
    """
    teacher = Teacher.from_pretrained(
        BASE_MODEL,
        dtype=torch.bfloat16,
        num_layers=TEACHER.num_layers,
        query_length=TEACHER.query_length,
        passage_length=TEACHER.passage_length,
    )
    both = halves(examples)
    easier = [group for half in both for group in make_groups(half, [example.positive for example in half])]
    tune(teacher, easier, out / FIRST, TEACHER.first)
    harder = [group for half in both for group in mistakes(student, half)]
    return tune(teacher, harder, out / SECOND, TEACHER.second, callbacks(teacher))
