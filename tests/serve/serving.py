"""What the tests of the server share."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

PASSAGES = [(f"p{i}", text) for i, text in enumerate(("open the file", "close the socket", "read x y z", "a lock"))]
TOKEN = "0123456789abcdef"

Client = Callable[..., httpx.AsyncClient]


def run(client: Client, calls: Any, **options: Any) -> Any:
    """What ``calls`` gives with a client of a server with these options."""

    async def inside() -> Any:
        async with client(**options) as session:
            return await calls(session)

    return asyncio.run(inside())
