"""A batch holds every distinct passage once, and targets where the teacher has judged."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from d2llm.backbone import load_tokenizer
from d2llm.data.example import Example, text_id
from d2llm.data.positives import KnownPositives
from d2llm.errors import MismatchError
from d2llm.training.collator import Collator, check_header

EXAMPLES = [
    Example("open the file", "read", ("close", "x y")),
    Example("open it", "close", task="sym"),
    Example("open the file", "z", ("x y",)),
]
#: That "close" answers "open the file" stands in an example outside of the batch.
KNOWN = KnownPositives([*EXAMPLES, Example("open the file", "close")])


class Table:
    """Scores of some pairs, as a score table gives them."""

    def __init__(self, known: dict[tuple[str, str], float]) -> None:
        self.header = {"model": "teacher-a", "templates": ["t"]}
        self.known = {(text_id(query), text_id(passage)): value for (query, passage), value in known.items()}

    def logits(self, query_id: str, passage_id: str) -> tuple[float, float] | None:
        known = self.known.get((query_id, passage_id))
        return None if known is None else (math.log(known), math.log1p(-known))

    def relation(self, query_id: str, passage_ids: Sequence[str]) -> np.ndarray | None:
        judged = [text_id(text) for text in ("read", "close", "x y")]
        return np.eye(3, dtype=np.float32) if list(passage_ids) == judged else None


@pytest.fixture(scope="module")
def tokenizer(base_model: str) -> Any:
    return load_tokenizer(base_model)


def test_groups_point_at_distinct_passages(tokenizer: Any) -> None:
    batch = Collator(tokenizer, 8, 8, KNOWN)(EXAMPLES)
    assert batch["passage_input_ids"].shape[0] == 4
    passages = zip(batch["passage_input_ids"], batch["passage_attention_mask"], strict=True)
    decoded = [tokenizer.decode(ids[mask.bool()]) for ids, mask in passages]
    for example, rows, valid in zip(EXAMPLES, batch["groups"], batch["valid"], strict=True):
        assert [decoded[row] for row in rows[valid]] == list(example.passages)
    assert batch["valid"].tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch["task"].tolist() == [1, 0, 1]
    # Examples 0 and 2 share their query, so each one's positive is no negative of the other, nor is what is known.
    assert batch["duplicates"].tolist() == [[False, True, True], [False] * 3, [True, True, False]]
    assert "s" not in batch


def test_lengths_are_cut(tokenizer: Any) -> None:
    batch = Collator(tokenizer, 2, 3, KNOWN)([Example("open the file of a b c", "close the socket of x y")])
    assert batch["input_ids"].shape == (1, 2) and batch["passage_input_ids"].shape == (1, 3)


def test_table_scores_land_at_their_pairs(tokenizer: Any) -> None:
    table = Table({("open the file", "read"): 0.9, ("open the file", "x y"): 0.2, ("open it", "read"): 0.4})
    batch = Collator(tokenizer, 8, 8, KNOWN, teacher=table)(EXAMPLES)
    nan = math.nan
    expected = torch.tensor([[0.9, nan, 0.2], [nan, nan, nan], [nan, 0.2, nan]])
    torch.testing.assert_close(batch["s"], expected, equal_nan=True)
    in_batch = torch.tensor([[0.9, nan, nan], [0.4, nan, nan], [0.9, nan, nan]])
    torch.testing.assert_close(batch["s_in_batch"], in_batch, equal_nan=True)
    assert torch.equal(batch["relation"][0], torch.eye(3)) and batch["relation"][1:].isnan().all()


def test_every_row_is_judged_by_the_teacher_of_its_task(tokenizer: Any) -> None:
    pairs = {(query, passage): 0.0 for query in ("open the file", "open it") for passage in ("read", "close", "z")}
    teachers = {"asym": Table(dict.fromkeys(pairs, 0.25)), "sym": Table(dict.fromkeys(pairs, 0.75))}
    batch = Collator(tokenizer, 8, 8, KNOWN, teachers)(EXAMPLES)
    expected = torch.tensor([[0.25] * 3, [0.75] * 3, [0.25] * 3])
    torch.testing.assert_close(batch["s_in_batch"], expected)
    odds = torch.tensor([-math.log(3), math.log(3), -math.log(3)])
    torch.testing.assert_close(batch["log_odds"][:, 0], odds)
    torch.testing.assert_close(batch["s"][:, 0], torch.tensor([0.25, 0.75, 0.25]))
    alone = Collator(tokenizer, 8, 8, KNOWN, {"sym": teachers["sym"]})(EXAMPLES)
    assert alone["s"][:, 0].isnan().tolist() == [True, False, True]


def test_scores_that_examples_carry(tokenizer: Any) -> None:
    scored = Example("open", "read", ("close",), scores=((1.0, -1.0), (0.0, 2.0)))
    batch = Collator(tokenizer, 8, 8, KNOWN, temperature=2.0)([scored, Example("x", "y", ("a", "b"))])
    expected = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0)), math.nan]
    torch.testing.assert_close(batch["s"][0], torch.tensor(expected), equal_nan=True)
    assert batch["s"][1].isnan().all()


def test_another_teacher_is_a_mismatch() -> None:
    check_header(Table({}), {"model": "teacher-a", "templates": ["t"]})
    check_header(Table({}), {})
    with pytest.raises(MismatchError, match="expected model 'teacher-b', got 'teacher-a'"):
        check_header(Table({}), {"model": "teacher-b"})
    with pytest.raises(MismatchError, match="expected templates"):
        check_header(Table({}), {"templates": ["u"]})


def test_a_share_of_a_gathered_batch_has_the_rows_of_the_whole(tokenizer: Any) -> None:
    examples = [*EXAMPLES, Example("read it", "y")]
    table = Table({(e.query, p): 0.5 for e in examples for p in ("read", "close", "x y", "z", "y")})
    whole = Collator(tokenizer, 8, 8, KNOWN, teacher=table)(examples)
    for rank in (0, 1):
        part = Collator(tokenizer, 8, 8, KNOWN, teacher=table, share=(rank, 2))(examples)
        rows = slice(2 * rank, 2 * rank + 2)
        for name in ("valid", "duplicates", "s", "s_in_batch", "relation", "task"):
            torch.testing.assert_close(part[name], whole[name][rows], rtol=0, atol=0, equal_nan=True)
        assert len(part["input_ids"]) == 2 and part["groups"].shape == (2, 3)
        texts = [[tokenizer.decode(part["passage_input_ids"][row]) for row in rows] for rows in part["groups"]]
        for example, group in zip(examples[rows], texts, strict=True):
            assert [text.replace("<eos>", "") for text in group[: len(example.passages)]] == list(example.passages)
