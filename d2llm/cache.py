"""Where things that can be made again are kept: converted models and the index of the standard library."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$D2LLM_CACHE`` where it is set, else ``d2llm`` in the user's cache folder (XDG)."""
    if chosen := os.environ.get("D2LLM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "d2llm"
