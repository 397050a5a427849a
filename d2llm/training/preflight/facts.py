"""The facts about a run that can be had without a step of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2llm.data.columns import Columns, columns_of
from d2llm.data.example import Example, text_key
from d2llm.data.positives import KnownPositives
from d2llm.texts import token_lengths
from d2llm.training.preflight.survey import Survey, place, survey

if TYPE_CHECKING:
    from d2llm.training.trainer import DistillationTrainer

#: Examples of which every text is looked at.
EXAMPLES = 1 << 15
#: Texts of a kind whose tokens are counted.
_TEXTS = 1 << 12
#: Examples of a kind that are named.
_SHOWN = 5
#: The schedule that does not warm up.
_UNWARMED = "constant"


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts, counted before they are cut."""

    texts: int
    limit: int
    #: Share of the texts that are longer than the limit.
    cut: float
    #: Tokens that 50 %, 10 % and 1 % of the texts have more of, and most tokens of any.
    median: int
    percentile_90: int
    percentile_99: int
    longest: int


@dataclass(frozen=True)
class Negatives:
    """Hard negatives of the examples as they were given."""

    given: int
    #: Most that an example brings to a batch.
    drawn: int
    #: Left out: known positives of their query, and texts that an example holds already.
    known_positives: int
    repeated: int
    #: Where the first examples with such negatives stand.
    places: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a run consists of."""

    examples: int
    #: Of many examples some that lie evenly over the data: those whose negatives and whose texts are counted below.
    looked_at: int
    #: Examples whose query and positive another one has already, and where the first of them stand.
    repeated_examples: int
    repeated_places: tuple[str, ...]
    tasks: dict[str, int]
    batch_size: int
    processes: int
    steps: int
    warmup_steps: int
    #: Whether a table of scores is there, which then stands for all that examples carry.
    teacher: bool
    negatives: Negatives
    queries: Lengths
    passages: Lengths
    survey: Survey


def gather(trainer: "DistillationTrainer", given: Sequence[Example], cleaned: Sequence[Example]) -> Facts:
    """The facts about a run over the examples ``given``, which ``cleaned`` has without false negatives."""
    plan, student = trainer.plan, trainer.student
    unwarmed = trainer.config.optimizer.schedule == _UNWARMED
    columns = columns_of(given)
    repeated = _repeated(columns)
    every = max(1, math.ceil(len(given) / EXAMPLES))
    some = given[::every]
    passages = [passage for example in some for passage in example.passages]
    return Facts(
        examples=len(given),
        looked_at=len(some),
        repeated_examples=len(repeated),
        repeated_places=tuple(place(given[int(row)]) for row in repeated[:_SHOWN]),
        tasks=columns.count_tasks(),
        batch_size=plan.run.batch_size,
        processes=plan.world_size,
        steps=plan.all_updates,
        warmup_steps=0 if unwarmed else trainer.args.get_warmup_steps(plan.all_updates),
        teacher=trainer.collator.teacher is not None,
        negatives=_negatives(some, trainer.collator.known, trainer.config.data.negatives),
        queries=_lengths(student.tokenizer, [example.query for example in some], student.config.query_length),
        passages=_lengths(student.tokenizer, passages, student.config.passage_length),
        survey=survey(trainer, cleaned),
    )


def _repeated(columns: Columns) -> NDArray[np.int64]:
    """Rows of the examples whose query and positive stand before."""
    # The sort is stable, so that of equal pairs the first one comes first.
    order = np.lexsort((columns.positives, columns.queries))
    queries, positives = columns.queries[order], columns.positives[order]
    same = (queries[1:] == queries[:-1]) & (positives[1:] == positives[:-1])
    return np.sort(order[1:][same])


def _negatives(given: Sequence[Example], known: KnownPositives, drawn: int) -> Negatives:
    false = repeated = 0
    places = []
    for example in given:
        left_out = len(example.negatives) - len(known.clean(example).negatives)
        if left_out:
            positives = known.of(example.query)
            of_example = sum(text_key(negative) in positives for negative in example.negatives)
            false += of_example
            repeated += left_out - of_example
            places.append(place(example))
    return Negatives(sum(len(e.negatives) for e in given), drawn, false, repeated, tuple(places[:_SHOWN]))


def _lengths(tokenizer: Any, texts: Sequence[str], limit: int) -> Lengths:
    distinct = list(dict.fromkeys(texts))
    # Of many texts some that lie evenly over the data.
    looked_at = distinct[:: -(-len(distinct) // _TEXTS)]
    tokens = np.array(token_lengths(tokenizer, looked_at))
    middle, high, higher = (int(np.percentile(tokens, share, method="higher")) for share in (50, 90, 99))
    return Lengths(len(distinct), limit, float((tokens > limit).mean()), middle, high, higher, int(tokens.max()))
