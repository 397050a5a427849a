"""Encoding returns every text's own embedding, in order, whatever the batches."""

import numpy as np
import pytest
import torch

from d2llm.errors import InputError
from d2llm.student import D2LLM, windows
from d2llm.student.encoding import cosine_similarity
from d2llm.texts import CPU_TOKENS


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=2, iem_hidden=8, query_length=4, passage_length=12)


def test_order_and_batching_do_not_show(student: D2LLM) -> None:
    texts = ["z", "open the file of a b c and read it", "x y", "read", "close the socket of x y"] * 3
    whole = student.encode(texts)
    assert whole.shape == (15, student.dim) and whole.dtype == np.float32
    for i, text in enumerate(texts):
        np.testing.assert_allclose(student.encode([text])[0], whole[i], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(student.encode(texts, batch_size=2), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_batches_side_by_side_come_back_in_their_places(student: D2LLM) -> None:
    texts = ["z", "open the file of a b c and read it", "x y", "read"] * 3
    expected = np.concatenate([student.encode([text]) for text in texts])
    np.testing.assert_allclose(student.encode(texts, batch_size=1), expected, rtol=1e-4, atol=1e-5)


def test_texts_are_cut_at_the_limit_of_their_kind(student: D2LLM) -> None:
    text = "read the file of a b c " * 20
    ids = student.tokenizer(text)["input_ids"]
    for kind, limit in (("query", 4), ("passage", 12)):
        tokens = torch.tensor([ids[:limit]])
        with torch.no_grad():
            expected = student.embed(tokens, torch.ones_like(tokens)).numpy()
        np.testing.assert_array_equal(student.encode([text], kind=kind), expected)


def test_windows_read_a_text_as_a_whole(student: D2LLM) -> None:
    texts = ["read the file of a b c " * 7, "x y", "close the socket of x y " * 3]
    ids, owners = windows.cut(student.tokenizer, texts, 12)
    assert owners.tolist() == [0] * owners.tolist().count(0) + [1] + [2] * owners.tolist().count(2) and len(ids) > 5
    assert ids[0][-3:] == ids[1][:3] and max(map(len, ids)) == 12
    found = student.encode(texts, windows=True)
    with torch.no_grad():
        for number, vector in enumerate(found):
            own = [torch.tensor([tokens]) for tokens, owner in zip(ids, owners, strict=True) if owner == number]
            hidden = torch.cat([student.hidden(tokens, torch.ones_like(tokens)) for tokens in own], 1)
            np.testing.assert_allclose(
                vector, student.pool(hidden, torch.ones(hidden.shape[:2], dtype=torch.int64))[0], atol=1e-5
            )
    np.testing.assert_allclose(found[1], student.encode(texts)[1], atol=1e-5)
    np.testing.assert_allclose(student.encode(texts, windows=True, batch_size=1), found, atol=1e-5)


def test_windows_of_a_hundred_thousand_tokens_go_through_the_llm_a_batch_at_a_time(student: D2LLM, monkeypatch) -> None:
    seen = []
    hidden = student.hidden

    def counted(tokens: torch.Tensor, mask: torch.Tensor, backbone: object) -> torch.Tensor:
        seen.append(tokens.numel())
        return hidden(tokens[:, :1], mask[:, :1], backbone).expand(*tokens.shape, -1)

    monkeypatch.setattr(student, "hidden", counted)
    assert student.encode(["read the file of " * 25_000], windows=True).shape == (1, student.dim)
    assert max(seen) <= CPU_TOKENS and sum(seen) > 100_000


def test_training_mode_is_restored_and_dropout_is_off(student: D2LLM) -> None:
    student.train()
    try:
        first, second = student.encode(["open the file"]), student.encode(["open the file"])
        assert student.training
    finally:
        student.eval()
    np.testing.assert_array_equal(first, second)


def test_outputs(student: D2LLM) -> None:
    tensor = student.encode(["read", "close"], convert_to="torch", normalize=True)
    torch.testing.assert_close(tensor.norm(dim=1), torch.ones(2))
    half = student.encode(["read"], dtype=torch.bfloat16)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, student.encode(["read"]), atol=0.1)
    layer = torch.nn.Linear(student.dim, 1)
    layer(student.encode(["read"], convert_to="torch")).sum().backward()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "at least one text"),
        ("read", {}, "put it in a list"),
        (["read", " \n"], {}, r"texts\[1\]: expected a non-empty text"),
        (["read", None], {}, r"texts\[1\]: expected a non-empty text, got None"),
        (["read", "half \ud800"], {}, r"texts: expected text, got half of a surrogate pair in 'half \\ud800'"),
        (["read"], {"kind": "document"}, "kind: expected one of"),
        (["read"], {"convert_to": "list"}, "convert_to: expected one of"),
        (["read"], {"batch_size": 0}, "batch_size: expected at least 1"),
    ],
)
def test_bad_input_is_named(student: D2LLM, texts: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        student.encode(texts, **options)


def test_cosine_similarity() -> None:
    q, p = np.array([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[6.0, 8.0], [-4.0, 3.0]])
    np.testing.assert_allclose(cosine_similarity(q, p), [[1, 0], [0, 0]], atol=1e-7)
    with pytest.raises(InputError, match="one width"):
        cosine_similarity(q, np.ones((2, 3)))
    with pytest.raises(InputError, match="queries: expected finite"):
        cosine_similarity(np.array([[np.nan, 1.0]]), p)
