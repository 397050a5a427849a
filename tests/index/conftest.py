from pathlib import Path

import pytest
from index_fakes import WordEncoder, corpus

from d2llm.index import Index


@pytest.fixture
def model() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def index(model: WordEncoder, tmp_path: Path) -> Index:
    """50 passages in segments of 16, stored exactly."""
    return Index.build(model, corpus(50), tmp_path / "ix", shard_size=16, dtype="float32", progress=False)
