"""The same encoder behind the same framework, as it is usually served: sentence-transformers, a request at a time.

    python -m benchmarks.serving_peer

Says where it listens, and answers ``POST /v1/embeddings``. Each request is encoded by itself, in one of the framework's
threads.
"""

from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from d2llm import D2LLM
from d2llm.integrations.sentence_transformers import D2LLMSentenceTransformer
from d2llm.shipped import STUDENT


class Request(BaseModel):
    """What the clients send."""

    input: str | list[str]
    model: str


def main() -> None:
    """Run the program."""
    model = D2LLMSentenceTransformer.from_student(D2LLM.from_pretrained(STUDENT))
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/embeddings")
    def embeddings(asked: Request) -> dict[str, Any]:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        found = model.encode_query(texts, show_progress_bar=False).tolist()
        data = [{"object": "embedding", "index": number, "embedding": each} for number, each in enumerate(found)]
        return {"object": "list", "data": data, "model": asked.model}

    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    listening = config.bind_socket()
    print(f"sentence-transformers on http://127.0.0.1:{listening.getsockname()[1]},", flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
