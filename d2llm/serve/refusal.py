"""A request that is not served, told in the words of the dialect that it came in."""

from typing import Any

from d2llm.errors import BusyError, D2LLMError


class Refusal(Exception):
    """Why a request is not served.

    Args:
        status: HTTP status, 400 to 599.
        message: for whoever sent it.
        param: the field at fault.
        code: a word for programs, as OpenAI's clients read it.
        retry_after: seconds after which it may be sent again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @classmethod
    def because(cls, error: D2LLMError) -> "Refusal":
        """Of what whoever asks can mend, or wait for."""
        return cls(409, str(error), retry_after=1) if isinstance(error, BusyError) else cls(400, str(error))

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the body."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after is None else {**headers, "Retry-After": str(self.retry_after)}

    def body(self, path: str) -> dict[str, Any]:
        """The error as clients of a path read it: OpenAI's and vLLM's, Cohere's, Jina's, or that of TEI."""
        if path in ("/v1/embeddings", "/v1/models", "/score", "/v1/score"):
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        if path == "/v2/rerank":
            return {"message": self.message}
        if path == "/rerank":
            kind = {413: "Validation", 422: "Validation", 429: "Overloaded"}.get(self.status, "Backend")
            return {"error": self.message, "error_type": kind, "detail": self.message}
        return {"detail": self.message}
