"""The student computes what it is documented to, and only its own weights learn."""

import typing

import numpy as np
import pytest
import torch

from d2llm.errors import D2LLMError, InputError, MissingError
from d2llm.evaluation.systems import iem_scores
from d2llm.student import D2LLM, D2LLMConfig, chunks
from d2llm.student.configuration import Architecture


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=4, iem_hidden=16)


def training_batch(model: D2LLM) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 40, (2, 5), generator=generator)
    passages = torch.randint(2, 40, (4, 6), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "passage_input_ids": passages,
        "passage_attention_mask": torch.ones_like(passages),
        "groups": torch.tensor([[0, 2, 3], [1, 3, 0]]),
        "task": torch.tensor([0, 1]),
    }


def test_same_seed_same_student_and_the_global_random_state_is_left_alone(base_model: str) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (D2LLM.create(base_model, seed=s, lora_r=2, iem_hidden=8) for s in (3, 3, 4))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert torch.equal(before, torch.random.get_rng_state())


def test_padding_changes_no_embedding(student: D2LLM) -> None:
    ids = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 9, 9]])
    short = student.embed(ids, torch.ones_like(ids))
    long = student.embed(padded, torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)


def test_forward_scores_each_query_with_its_own_group_and_task(student: D2LLM) -> None:
    batch = training_batch(student)
    with torch.no_grad():
        output = student(**batch)
    assert output.embeddings.shape == (2, 32) and output.features.shape == (2, 3, 16)
    for i in range(2):
        task = int(batch["task"][i])
        for k in range(3):
            own = student.iem(output.embeddings[i], output.passage_embeddings[batch["groups"][i, k]], task)
            torch.testing.assert_close(output.logits[i, k], own, rtol=1e-4, atol=1e-4)
        positives = output.passage_embeddings[batch["groups"][:, 0]]
        row = student.iem.score_all(output.embeddings[i : i + 1], positives, task)[0]
        torch.testing.assert_close(output.in_batch_logits[i], row, rtol=1e-4, atol=1e-4)


def test_chunks_of_passages_change_nothing(student: D2LLM) -> None:
    batch = training_batch(student)
    with torch.no_grad():
        whole, chunked = student(**batch), student(**batch, texts_per_chunk=3)
    torch.testing.assert_close(whole.logits, chunked.logits, rtol=1e-4, atol=1e-4)


def test_a_step_is_cut_by_tokens_of_itself(student: D2LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = training_batch(student)
    shapes, embed = [], student.embed
    monkeypatch.setattr(student, "embed", lambda *args: shapes.append(tuple(args[0].shape)) or embed(*args))
    with torch.no_grad():
        whole = student(**batch)
        assert len(shapes) == 1
        monkeypatch.setattr(chunks, "_CPU_TOKENS", 12)
        cut = student(**batch)
    assert len(shapes) > 3 and all(rows == 1 or rows * length <= 12 for rows, length in shapes[1:])
    torch.testing.assert_close(whole.logits, cut.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_lora_and_heads_and_never_the_base(base_model: str, checkpointing: bool) -> None:
    model = D2LLM.create(base_model, lora_r=2, iem_hidden=8, base_dtype="bfloat16", init="xavier")
    if checkpointing:
        # The later name, where the installed transformers has it already.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**training_batch(model))
    (output.logits.sum() + output.in_batch_logits.sum()).backward()
    for name, parameter in model.named_parameters():
        if name not in model.trainable_state():
            assert parameter.grad is None and parameter.dtype == torch.bfloat16, name
        elif "fc_k.bias" not in name:  # Softmax cancels it: its gradient is zero or absent.
            assert parameter.dtype == torch.float32 and parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert any(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)


def test_an_earlier_hidden_layer_and_fewer_layers(base_model: str) -> None:
    cut = D2LLM.create(base_model, lora_r=0, num_layers=2)
    early = D2LLM.create(base_model, lora_r=0, hidden_layer=1)
    last = D2LLM.create(base_model, lora_r=0, hidden_layer=3)
    default = D2LLM.create(base_model, lora_r=0)
    text = ["read the file"]
    assert cut.backbone.config.num_hidden_layers == 2
    np.testing.assert_array_equal(last.encode(text), default.encode(text))
    assert not np.allclose(early.encode(text), default.encode(text))
    assert not np.allclose(cut.encode(text), default.encode(text))


def test_rank_agrees_with_score_and_keeps_ties_in_order(student: D2LLM) -> None:
    passages = ["read the file", "open the socket", "read the file", "close"]
    ranked = student.rank("read a file", passages)
    scores = student.score(["read a file"] * 4, passages)
    assert [hit["score"] for hit in ranked] == sorted(scores.tolist(), reverse=True)
    assert [hit["corpus_id"] for hit in ranked if hit["text"] == "read the file"] == [0, 2]
    assert student.rank("read a file", passages, top_k=1) == ranked[:1]


def test_score_takes_a_task_for_every_pair(student: D2LLM) -> None:
    mixed = student.score(["a b", "a b"], ["x y", "x y"], task=["sym", "asym"])
    assert mixed.shape == (2,) and mixed.dtype == np.float32
    np.testing.assert_allclose(mixed[0], student.score(["a b"], ["x y"], task="sym")[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mixed[1], student.score(["a b"], ["x y"], task="asym")[0], rtol=1e-4, atol=1e-5)


def test_a_student_in_bfloat16_scores_and_trains(base_model: str) -> None:
    student = D2LLM.create(base_model, iem_hidden=16, lora_r=2)
    queries, passages = ["open the file", "read z"], ["close the file", "read x y"]
    exact = student.score(queries, passages)
    student.to(torch.bfloat16)
    np.testing.assert_allclose(student.score(queries, passages), exact, rtol=0.1, atol=0.05)
    vectors = [student.encode(texts, convert_to="torch") for texts in (queries, passages)]
    np.testing.assert_allclose(np.diag(iem_scores(student, *vectors, "asym")), exact, rtol=0.1, atol=0.05)
    tokens = torch.tensor([[3, 4], [5, 6]])
    output = student(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        passage_input_ids=tokens,
        passage_attention_mask=torch.ones_like(tokens),
        groups=torch.tensor([[0], [1]]),
        task=torch.tensor([0, 1]),
    )
    assert output.logits.dtype == output.embeddings.dtype == torch.float32
    output.logits.sum().backward()


def test_no_pair_at_all_gives_no_score_but_an_error(student: D2LLM) -> None:
    with pytest.raises(InputError, match="at least one"):
        student.score([], [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score(["a"], ["b", "c"]), "passages: expected 1"),
        (lambda m: m.score(["a"], ["b"], task="both"), "task: expected one of"),
        (lambda m: m.score(["a"], ["b"], task=["sym", "sym"]), "task: expected one or 1"),
        (lambda m: m.rank("a", ["b"], top_k=2), "top_k: expected 1 to 1"),
        (lambda m: m.rank("a", []), "top_k: expected 1 to 0"),
        (lambda m: m.rank("  ", ["b"]), "expected a non-empty text"),
    ],
)
def test_bad_input_is_named(student: D2LLM, call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(student)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 4}, "unknown fields"),
        ({"num_layers": 9}, "num_layers: expected 1 to 3"),
        ({"hidden_layer": 4}, "hidden_layer: expected -1 to 3"),
        ({"pma_heads": 5}, "pma_heads: expected a divisor of the model width 32"),
        ({"init": "cold"}, "init: expected one of"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"query_length": 0}, "query_length: expected an integer of at least 1"),
    ],
)
def test_bad_configuration_is_named(base_model: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        D2LLM.create(base_model, **options)


def test_the_fields_that_can_be_named_are_those_of_the_configuration() -> None:
    hints = typing.get_type_hints(D2LLMConfig.__init__)
    assert typing.get_type_hints(Architecture) == {
        name: hint for name, hint in hints.items() if name not in ("base_model", "kwargs", "return")
    }


def test_a_package_that_is_not_there_is_missing() -> None:
    with pytest.raises(MissingError, match="not installed"):
        D2LLM.create("pypi:no-such-package-here")
    assert issubclass(MissingError, D2LLMError)
