"""The page to search on: one file, which loads nothing and may run no script but its own."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from d2llm.serve.engine import Engine

router = APIRouter(include_in_schema=False)
_HTML = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
#: What of it is for servers with a teacher.
_JUDGED = '<label id="judged" hidden>'
assert _JUDGED in _HTML
_SCRIPT = re.search(r"<script>(.*?)</script>", _HTML, re.DOTALL)
assert _SCRIPT is not None
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.group(1).encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def page(request: Request) -> HTMLResponse:
    """Query box, results, and why each was found."""
    engine: Engine = request.app.state.engine
    shown = _HTML if engine.judge is None else _HTML.replace(_JUDGED, _JUDGED.replace(" hidden", ""))
    return HTMLResponse(shown, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})
