"""A question to a running server."""

import json
import urllib.error
import urllib.request
from typing import Any

from d2llm.errors import InputError, MissingError

_SECONDS = 120


def ask(url: str, question: dict[str, Any], token: str | None = None) -> list[dict[str, Any]]:
    """The hits of a search by the server at an address.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        question: fields of ``POST /search`` (docs/serving.md).
        token: what the server asks for.

    Raises:
        InputError: for an address of another kind, or for what the server refuses or answers otherwise.
        MissingError: if there is none at that address.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url: expected http:// or https://, got {url!r:.200}")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{url.rstrip('/')}/search", json.dumps(question).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            hits: list[dict[str, Any]] = json.load(answer)["hits"]
    except urllib.error.HTTPError as error:
        raise InputError(f"--url: {url} answered {error.code}: {error.read(200).decode(errors='replace')}") from None
    except (urllib.error.URLError, TimeoutError) as error:
        raise MissingError(f"--url: no server at {url} ({error}); start one with: d2llm serve") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--url: expected the hits of a search from {url}, got something else") from None
    return hits
