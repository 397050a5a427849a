import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from teacher_models import save_model

from d2llm.teacher.model import Teacher


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random Llama."""
    # Weights far from the default's, so that texts matter to the logits.
    return save_model(tmp_path_factory.mktemp("llama"), initializer_range=0.3)


@pytest.fixture(scope="session")
def shared_teacher(tiny_lm: str) -> Teacher:
    """An untuned teacher that no test changes."""
    return Teacher.from_pretrained(tiny_lm)
