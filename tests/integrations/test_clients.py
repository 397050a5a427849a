"""Unmodified clients of other services speak to the server: each with the real package, over a real process."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

# In an environment of their own, since each brings much along: `make test-integrations`.
openai = pytest.importorskip("openai")

import cohere  # noqa: E402
import httpx  # noqa: E402
from haystack import Document  # noqa: E402
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker  # noqa: E402
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402
from langchain_openai import OpenAIEmbeddings  # noqa: E402
from llama_index.core.schema import NodeWithScore, TextNode  # noqa: E402
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference  # noqa: E402

DOCUMENTS = [
    "def unlink(path): remove a file",
    "def add(a, b): return the sum of two numbers",
    "def listdir(path): names of the files in a folder",
]
QUERY = "add two numbers"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The shipped student behind the command, as users start it."""
    python = os.environ.get("D2LLM_SERVER_PYTHON", sys.executable)
    command = [python, "-m", "d2llm.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert found is not None
            for _ in range(1000):
                try:
                    httpx.get(f"{found.group()}/ready", timeout=60)
                    break
                except httpx.ConnectError:
                    time.sleep(0.02)
            yield found.group()
        finally:
            process.terminate()


def test_openai(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert "d2llm" in [model.id for model in client.models.list()]
    answer = client.embeddings.create(model="d2llm:query", input=[QUERY, *DOCUMENTS])
    assert [each.index for each in answer.data] == [0, 1, 2, 3] and len(answer.data[0].embedding) == 384
    floats = client.embeddings.create(model="d2llm:query", input=QUERY, encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding, rel=0.05, abs=0.02)
    with pytest.raises(openai.NotFoundError, match="expected d2llm"):
        client.embeddings.create(model="gpt", input=QUERY)
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.embeddings.create(model="d2llm", input=[""])


def test_langchain_s_retriever(url: str) -> None:
    embeddings = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model="d2llm", check_embedding_ctx_length=False)
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    found = store.as_retriever(search_kwargs={"k": 1}).invoke(QUERY)
    assert [document.page_content for document in found] == [DOCUMENTS[1]]


def test_cohere(url: str) -> None:
    client = cohere.ClientV2(api_key="none", base_url=url)
    answer = client.rerank(model="d2llm", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert len(answer.results) == 2 and answer.results[0].index == 1
    assert 1 >= answer.results[0].relevance_score > answer.results[1].relevance_score >= 0


def test_llama_index_s_re_ranker(url: str) -> None:
    ranker = TextEmbeddingInference(base_url=url, top_n=2)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    assert ranker.postprocess_nodes(nodes, query_str=QUERY)[0].node.text == DOCUMENTS[1]


def test_haystack_s_ranker(url: str) -> None:
    found = HuggingFaceTEIRanker(url=url, top_k=2).run(QUERY, [Document(content=text) for text in DOCUMENTS])
    assert found["documents"][0].content == DOCUMENTS[1]


def test_open_webui_s_external_re_ranker(url: str) -> None:
    body = {"model": "d2llm", "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    results = httpx.post(f"{url}/v1/rerank", json=body, timeout=60).json()["results"]
    scores = [each["relevance_score"] for each in sorted(results, key=lambda each: each["index"])]
    assert len(scores) == 3 and max(scores) == scores[1]
