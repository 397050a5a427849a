"""The client of an OpenAI-compatible completions endpoint: one prompt, the likeliest tokens behind it."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from d2llm.data.rows import as_number
from d2llm.errors import FormatError, InputError, MissingError, shown
from d2llm.files import parse_json

#: Answers of a server that is busy or restarting, and may answer well the next time.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Seconds before the first repetition; each further one waits twice as long, up to the second number.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
#: Most of an answer that is read: it has one token.
_LARGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Completion:
    """What a server said of a prompt."""

    #: Log-probability by token: a text, or a token id where the server gives ids.
    top: Mapping[str | int, float]
    #: Text of those that came by id with their text.
    texts: Mapping[int, str]
    #: Tokens that the server counted in the prompt, None where it does not say.
    prompt_tokens: int | None


@dataclass(frozen=True)
class Completions:
    """Asks an endpoint for the likeliest next tokens (``POST URL/completions``).

    vLLM, SGLang, llama.cpp's server, llama-cpp-python and TGI have one.

    Args:
        url: up to ``/v1``.
        model: the name that the server knows it by.
        top: how many of the likeliest tokens to ask for.
        timeout: seconds to wait for an answer.
        retries: repetitions after a server that is busy, late or not to be reached.
        token: what the server asks for; it is sent and never written anywhere.
        pause: waits so many seconds.

    Raises:
        InputError: for an address of another kind, or a number out of range.
    """

    url: str
    model: str
    top: int = 20
    timeout: float = 120.0
    retries: int = 6
    token: str | None = None
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"endpoint: expected http:// or https://, got {self.url!r:.200}")
        if self.top < 2 or self.retries < 0 or not 0 < self.timeout < float("inf"):
            raise InputError(
                "endpoint: expected at least 2 top tokens, at least 0 retries and a positive timeout, got "
                f"{self.top}, {self.retries} and {self.timeout}"
            )

    def ask(self, prompt: str | Sequence[int]) -> Completion:
        """The likeliest tokens behind a prompt, given as text or as token ids.

        Raises:
            InputError: for what the server refuses.
            FormatError: for an answer that is none.
            MissingError: if it has not answered after all repetitions.
        """
        question = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": self.top}
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        request = urllib.request.Request(f"{self.url.rstrip('/')}/completions", json.dumps(question).encode(), headers)
        for attempt in range(self.retries + 1):
            wait = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return read_completion(answer.read(_LARGEST_ANSWER))
            except urllib.error.HTTPError as error:
                trouble = f"{error.code}: {error.read(200).decode(errors='replace')}"
                if error.code not in _AGAIN:
                    raise InputError(f"{self.url} refuses with {trouble}") from None
                wait = _asked_for(error.headers.get("Retry-After")) or wait
            except (OSError, HTTPException) as error:
                trouble = str(error) or type(error).__name__
            if attempt < self.retries:
                self.pause(wait)
        raise MissingError(f"{self.url}: no answer after {self.retries + 1} attempts, the last one {trouble}")


def read_completion(body: bytes) -> Completion:
    """What an answer holds, in the form of OpenAI's completions or of its chat.

    Raises:
        FormatError: for anything else.
    """
    try:
        answer = parse_json(body.decode())
        logprobs = answer["choices"][0]["logprobs"]
        texts: dict[int, str] = {}
        if "content" in logprobs:
            likeliest = logprobs["content"][0]["top_logprobs"]
            listed = [(each.get("id", each["token"]), each["logprob"]) for each in likeliest]
            texts = {each["id"]: each["token"] for each in likeliest if "id" in each}
        else:
            listed = list(logprobs["top_logprobs"][0].items())
        top = {_name(token): as_number(value) for token, value in listed}
        counted = (answer.get("usage") or {}).get("prompt_tokens")
    except (UnicodeDecodeError, FormatError, LookupError, TypeError, AttributeError):
        raise FormatError(
            f"expected a completion of one token with logprobs, got {body[:200].decode(errors='replace')!r}"
        ) from None
    kept = {token: value for token, value in top.items() if value is not None and value <= 1e-3}
    if len(kept) < len(top):
        raise FormatError(f"expected log-probabilities, finite and at most 0, got {shown(top)}")
    return Completion(kept, texts, counted if isinstance(counted, int) and counted > 0 else None)


def _name(token: Any) -> str | int:
    """A token as it is called: vLLM can spell its id."""
    name = str(token)
    spelled = name.removeprefix("token_id:")
    if isinstance(token, int) or (spelled != name and spelled.isdigit()):
        return int(spelled)
    return name


def _asked_for(header: str | None) -> float | None:
    """Seconds that a server asks to wait, where it says so in seconds."""
    return min(_LONGEST_PAUSE, float(header)) if header is not None and header.isdigit() else None
