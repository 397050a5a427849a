"""What the clients of each dialect send and read."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from serving import Client

from d2llm.student import D2LLM

DOCUMENTS = ["close the socket", "open the file", "read x y z"]


def ask(client: Client, path: str, body: Any, **options: Any) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        async with client(**options) as session:
            # In ASCII: half of a surrogate pair has no bytes of its own.
            headers = {"Content-Type": "application/json"}
            answer = await session.post(path, content=json.dumps(body), headers=headers)
            return answer.status_code, answer.json()

    return asyncio.run(run())


def probability(student: D2LLM, query: str, documents: list[str]) -> np.ndarray:
    return 1 / (1 + np.exp(-student.score([query] * len(documents), documents)))


@pytest.mark.parametrize("encoding", ("float", "base64"))
@pytest.mark.parametrize("kind", ("query", "passage"))
def test_embeddings_are_openai_s(client: Client, student: D2LLM, kind: str, encoding: str) -> None:
    body = {"input": DOCUMENTS, "model": f"d2llm:{kind}", "encoding_format": encoding}
    status, answer = ask(client, "/v1/embeddings", body)
    assert status == 200 and answer["object"] == "list" and answer["model"] == f"d2llm:{kind}"
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    found = [each["embedding"] for each in answer["data"]]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(each), "<f4") for each in found]
    np.testing.assert_allclose(found, student.encode(DOCUMENTS, kind, normalize=True), rtol=1e-4, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_one_text_needs_no_list(client: Client) -> None:
    status, answer = ask(client, "/v1/embeddings", {"input": "open", "model": "d2llm", "dimensions": 32})
    assert status == 200 and len(answer["data"]) == 1 and len(answer["data"][0]["embedding"]) == 32


@pytest.mark.parametrize(
    ("change", "status", "said"),
    (
        ({"input": [[1, 2]]}, 400, "check_embedding_ctx_length=False"),
        ({"input": [1, 2]}, 400, "check_embedding_ctx_length=False"),
        ({"input": []}, 400, "at least one"),
        ({"input": ["a", " "]}, 400, "text 1 is empty"),
        ({"input": ["a", "b\ud800"]}, 400, "text 1 has half of a surrogate pair"),
        ({"input": 5}, 400, "input"),
        ({"model": "other"}, 404, "expected d2llm"),
        ({"model": "d2llm:answer"}, 404, "expected d2llm"),
        ({"dimensions": 8}, 400, "the model has 32"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
    ),
)
def test_bad_embeddings_are_refused_in_openai_s_words(client: Client, change: Any, status: int, said: str) -> None:
    got, answer = ask(client, "/v1/embeddings", {"input": "open", "model": "d2llm", **change})
    assert got == status and said in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error" and "code" in answer["error"]


@pytest.mark.parametrize("path", ("/rerank", "/v1/rerank", "/v2/rerank"))
def test_reranking_is_jina_s_and_cohere_s(client: Client, student: D2LLM, path: str) -> None:
    given = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    body = {"query": "open a file", "documents": given, "model": "d2llm", "max_tokens_per_doc": 4096}
    status, answer = ask(client, path, body)
    expected = probability(student, "open a file", DOCUMENTS)
    assert status == 200 and [each["index"] for each in answer["results"]] == np.argsort(-expected).tolist()
    scores = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(scores, np.sort(expected)[::-1], rtol=1e-4)
    status, answer = ask(client, path, {**body, "top_n": 1, "return_documents": True})
    assert [each["document"]["text"] for each in answer["results"]] == [DOCUMENTS[expected.argmax()]]


@pytest.mark.parametrize("raw", (False, True))
def test_texts_make_it_tei_s(client: Client, student: D2LLM, raw: bool) -> None:
    body = {"query": "open a file", "texts": DOCUMENTS, "raw_scores": raw, "return_text": True}
    status, answer = ask(client, "/rerank", body)
    logits = student.score(["open a file"] * 3, DOCUMENTS)
    expected = logits if raw else probability(student, "open a file", DOCUMENTS)
    order = np.argsort(-logits)
    assert status == 200 and [(each["index"], each["text"]) for each in answer] == [(i, DOCUMENTS[i]) for i in order]
    np.testing.assert_allclose([each["score"] for each in answer], expected[order], rtol=1e-4, atol=1e-5)


def test_tei_cuts_no_text_unless_told(client: Client) -> None:
    body = {"query": "open", "texts": ["close the file " * 20]}
    status, answer = ask(client, "/rerank", body)
    assert status == 413 and "set truncate" in answer["error"] and answer["error_type"] == "Validation"
    assert ask(client, "/rerank", {**body, "truncate": True})[0] == 200


@pytest.mark.parametrize("names", (("queries", "documents"), ("text_1", "text_2")))
def test_scores_are_vllm_s(client: Client, student: D2LLM, names: tuple[str, str]) -> None:
    one = dict(zip(names, ("open a file", DOCUMENTS), strict=True))
    status, answer = ask(client, "/score", one)
    assert status == 200 and {each["object"] for each in answer["data"]} == {"score"}
    found = [each["score"] for each in answer["data"]]
    np.testing.assert_allclose(found, probability(student, "open a file", DOCUMENTS), rtol=1e-4)
    each = dict(zip(names, (DOCUMENTS[::-1], DOCUMENTS), strict=True))
    found = [row["score"] for row in ask(client, "/score", each)[1]["data"]]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-student.score(DOCUMENTS[::-1], DOCUMENTS))), rtol=1e-4)
    status, answer = ask(client, "/score", dict(zip(names, (DOCUMENTS[:2], DOCUMENTS), strict=True)))
    assert status == 400 and "expected 2" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    (
        ("/v1/rerank", {"query": "open"}, "detail"),
        ("/v2/rerank", {"query": "open", "documents": []}, "message"),
        ("/rerank", {"query": "", "texts": ["a"]}, "error"),
        ("/v1/rerank", {"query": "open", "documents": ["a"], "top_n": 0}, "detail"),
        ("/v1/rerank", {"query": "open", "documents": ["a"], "task": "both"}, "detail"),
    ),
)
def test_each_dialect_is_refused_in_its_own_words(client: Client, path: str, body: Any, field: str) -> None:
    status, answer = ask(client, path, body)
    assert 400 <= status < 500 and isinstance(answer[field], str)
