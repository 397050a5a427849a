"""Hard negatives mined anew from the student in the course of a run.

What a round of mining found is written to the run's folder, whole or not at all, before the first batch that it serves
is put together, and read from there: a killed run goes on with the same negatives, and all processes share them.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from d2llm.data.example import Example
from d2llm.data.jsonl import read_corpus, read_examples, write_examples
from d2llm.errors import InputError, MismatchError
from d2llm.mining import mine_negatives, student_vectors
from d2llm.student import D2LLM
from d2llm.training.arguments import autocast_dtype
from d2llm.training.config import TrainConfig
from d2llm.training.plan import BatchKey, EpochExamples, Plan

#: Folder of what was mined, inside the run's.
FOLDER = "negatives"


class MinedExamples(EpochExamples):
    """Examples by key, with the hard negatives that the student of their round ranks high.

    Round r serves the optimizer steps from r times the period on. Round 0 has the negatives that the examples bring or,
    where none brings any, those of the student as it starts.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: TrainConfig,
        plan: Plan,
        student: D2LLM,
        arguments: TrainingArguments,
    ) -> None:
        """Make the dataset.

        Args:
            examples: of the run; their positives and negatives are drawn from, unless the configuration has a corpus.
            config: ``mining``, ``data.negatives``, ``run.seed`` and ``output_dir`` are read.
            plan: the run's.
            student: what is trained.
            arguments: the run's, for its number type and its processes.

        Raises:
            InputError: for examples that carry scores, which mined negatives have none of.
            D2LLMError: for a corpus that is missing or malformed.
        """
        super().__init__(examples, config.data.negatives, config.run.seed)
        scored = next((example for example in examples if example.scores is not None), None)
        if scored is not None:
            raise InputError(
                "mining: expected examples without scores of their own, since what is mined has none; leave them out "
                f"or give data.teacher; got scores for query {scored.query!r:.200}"
            )
        self.given = examples
        self.config = config.mining
        self.dtype = autocast_dtype(config.run)
        self.period = config.mining.every_steps or (config.mining.every_epochs or 1) * plan.updates
        self.first = 1 if any(example.negatives for example in examples) else 0
        self.round = -1
        self.folder = Path(config.output_dir) / FOLDER
        self.student = student
        self.arguments = arguments
        corpus = config.mining.corpus
        passages = [text for _, text in read_corpus(corpus)] if corpus is not None else []
        held = (text for example in examples for text in ((example.positive,) if corpus else example.passages))
        self.passages = list(dict.fromkeys([*passages, *held]))

    def __getitem__(self, key: BatchKey) -> Example:
        number = key.update // self.period
        if number != self.round:
            self.examples = self.given if number < self.first else self._negatives(number)
            self.round = number
        return super().__getitem__(key)

    def _negatives(self, number: int) -> Sequence[Example]:
        """The examples of a round, mined now unless that is done."""
        path = self.folder / f"round-{number}.jsonl"
        with self.arguments.main_process_first(desc="mining hard negatives"):
            if not path.exists():
                write_examples(path, self._mine())
            mined = read_examples(path)
        if [_pair(example) for example in mined] != [_pair(example) for example in self.given]:
            raise MismatchError(f"{path}: expected the pairs of the run's examples, got others; remove {self.folder}")
        return mined

    def _mine(self) -> list[Example]:
        queries, passages = student_vectors(self.student, self.given, self.passages, self.dtype)
        return mine_negatives(
            self.given,
            self.passages,
            self.config.k,
            "vectors",
            vector_top=self.config.top,
            query_vectors=queries,
            passage_vectors=passages,
            margin=self.config.margin,
            seed=self.seed,
        )


class MineAfresh(TrainerCallback):
    """Removes what another run, or a look at this one beforehand, left in the folder when a run starts."""

    def __init__(self, examples: MinedExamples) -> None:
        self.examples = examples

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer, with the steps done so far in ``state``."""
        if state.global_step == 0:
            self.examples.round = -1
            if state.is_world_process_zero:
                shutil.rmtree(self.examples.folder, ignore_errors=True)


def _pair(example: Example) -> tuple[str, str, str]:
    return example.query, example.positive, example.task
