"""Names that the tests of the server share."""

from collections.abc import Callable

import httpx

PASSAGES = [(f"p{i}", text) for i, text in enumerate(("open the file", "close the socket", "read x y z", "a lock"))]
TOKEN = "0123456789abcdef"

Client = Callable[..., httpx.AsyncClient]
