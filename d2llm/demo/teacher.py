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
from d2llm.teacher.tuning import TuningConfig, tune


def tuning_groups(student: D2LLM, examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """A positive, two of the student's best, a random negative and one of BM25's best, in that order, shuffled.

    Half are the standard library's docstrings, half are queries of any kind that ask for functions of other packages.

    Args:
        examples: what the student learnt from.
    """
    draw = random.Random(seed)
    of_library = {(pair.query, pair.positive) for pair in standard_library_pairs()}
    passages = {positive for _, positive in of_library}
    library = [example for example in examples if (example.query, example.positive) in of_library]
    others = [example for example in examples if example.positive not in passages]
    halves = (library, draw.sample(others, min(len(library), len(others))))
    groups = [group for half in halves for group in _groups(student, half, seed)]
    draw.shuffle(groups)
    return groups


def _groups(student: D2LLM, examples: Sequence[Example], seed: int) -> list[Example]:
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
    """The teacher, tuned on groups of these examples; checkpoints lie in ``out``, from which it goes on."""
    teacher = Teacher.from_pretrained(
        BASE_MODEL,
        dtype=torch.bfloat16,
        num_layers=TEACHER.num_layers,
        query_length=TEACHER.query_length,
        passage_length=TEACHER.passage_length,
    )
    config = TuningConfig(steps=TEACHER.steps, groups_per_step=TEACHER.groups_per_step)
    return tune(teacher, tuning_groups(student, examples), out, config, callbacks(teacher))
