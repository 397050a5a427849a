import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_models import save_model
from transformers import AutoModelForCausalLM

from d2llm.backbone import load_causal_lm, weights_fingerprint
from d2llm.errors import FormatError, InputError, MissingError
from d2llm.teacher.model import Teacher, yes_probability
from d2llm.teacher.templates import TEMPLATES

QUERIES = ["read the file", "close a socket of the server", "no", "the file the file"]
PASSAGES = ["def read(): " + "pass " * 30, "x", "socket.close()", "answer"]


def own_logits(folder: str, teacher: Teacher, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Yes and no logits and features by the whole model, one unpadded prompt at a time."""
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    builder = teacher.builder(task)
    logits, features = [], []
    for ids in builder.build(QUERIES, PASSAGES):
        with torch.no_grad():
            output = lm(input_ids=torch.tensor([ids]), output_hidden_states=True)
        logits.append(output.logits[0, -1, [builder.yes, builder.no]].numpy())
        features.append(output.hidden_states[-1][0, -1].numpy())
    return np.array(logits), np.array(features)


@pytest.mark.parametrize("task", ["sym", "asym"])
def test_judge_gives_the_models_own_logits_and_features(tiny_lm, shared_teacher, task):
    logits, features = shared_teacher.judge(QUERIES, PASSAGES, task)
    expected_logits, expected_features = own_logits(tiny_lm, shared_teacher, task)
    assert logits.dtype == features.dtype == np.float32 and features.shape == (4, 32)
    assert np.ptp(expected_logits[:, 0]) > 0.01
    np.testing.assert_allclose(logits, expected_logits, atol=2e-5)
    np.testing.assert_allclose(features, expected_features, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"n_positions": 512}),
        ("cohere", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("gemma2", {"query_pre_attn_scalar": 8, "head_dim": 8, "final_logit_softcapping": 0.5}),
    ],
)
def test_other_architectures_keep_their_own_logits(tmp_path, kind, settings):
    folder = save_model(tmp_path, kind, initializer_range=0.3, **settings)
    teacher = Teacher.from_pretrained(folder)
    expected, _ = own_logits(folder, teacher, "asym")
    np.testing.assert_allclose(teacher.judge(QUERIES, PASSAGES, "asym")[0], expected, atol=5e-5, rtol=1e-4)


def test_a_pair_does_not_depend_on_the_pairs_beside_it(shared_teacher):
    together = shared_teacher.judge(QUERIES, PASSAGES, "asym")
    for batch_tokens in (1, 200):
        apart = shared_teacher.judge(QUERIES[::-1], PASSAGES[::-1], "asym", batch_tokens=batch_tokens)
        for one, two in zip(together, apart, strict=True):
            np.testing.assert_allclose(one, two[::-1], atol=2e-5)


def test_only_two_rows_of_the_head_are_used(tiny_lm):
    teacher = Teacher.from_pretrained(tiny_lm)
    before, _ = teacher.judge(QUERIES, PASSAGES, "asym")
    builder = teacher.builder("asym")
    others = torch.ones(len(teacher.head.weight), dtype=torch.bool)
    others[[builder.yes, builder.no]] = False
    with torch.no_grad():
        # Untied, so that the embeddings stay as they are.
        teacher.head.weight = torch.nn.Parameter(teacher.head.weight.masked_fill(others[:, None], torch.nan))
    after, _ = teacher.judge(QUERIES, PASSAGES, "asym")
    np.testing.assert_array_equal(before, after)


def test_judging_no_pairs(shared_teacher):
    logits, features = shared_teacher.judge([], [], "sym")
    assert logits.shape == (0, 2) and features.shape == (0, 32)
    assert shared_teacher.score([], [], "sym").shape == (0,)


def test_judging_leaves_the_training_mode_as_it_was(tiny_lm):
    teacher = Teacher.from_pretrained(tiny_lm)
    teacher.decoder.train()
    teacher.judge(["a"], ["b"], "sym")
    assert teacher.decoder.training


def test_score_is_the_softmax_at_a_temperature(shared_teacher):
    logits, _ = shared_teacher.judge(QUERIES, PASSAGES, "asym")
    for temperature in (1.0, 0.5, 3.0):
        expected = torch.softmax(torch.tensor(logits) / temperature, 1)[:, 0].numpy()
        np.testing.assert_allclose(
            shared_teacher.score(QUERIES, PASSAGES, "asym", temperature=temperature), expected, rtol=1e-5
        )


@settings(deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32), st.floats(1e-3, 1e3))
def test_yes_probability_is_finite_and_complements_no(yes, no, temperature):
    s = yes_probability(np.array([[yes, no], [no, yes]], np.float32), temperature)
    assert s.dtype == np.float32 and ((s >= 0) & (s <= 1)).all()
    assert abs(s.sum() - 1) < 1e-6


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperatures_are_refused(shared_teacher, temperature):
    with pytest.raises(InputError, match="temperature: expected a positive number"):
        shared_teacher.score(["a"], ["b"], "sym", temperature=temperature)
    with pytest.raises(InputError, match="temperature"):
        yes_probability(np.zeros((1, 2), np.float32), temperature)


def test_bad_input_is_refused(shared_teacher):
    with pytest.raises(InputError, match=r"task: .*\['asym', 'sym'\], got 'rank'"):
        shared_teacher.judge(["a"], ["b"], "rank")
    with pytest.raises(InputError, match=r"passages\[0\]: expected a non-empty text, got ' '"):
        shared_teacher.judge(["a"], [" "], "sym")
    with pytest.raises(InputError, match="batch_tokens"):
        shared_teacher.judge(["a"], ["b"], "sym", batch_tokens=0)


def test_templates_and_lengths_must_fit(tiny_lm, tmp_path):
    with pytest.raises(InputError, match="each of another task"):
        Teacher.from_pretrained(tiny_lm, templates=(TEMPLATES["sym-en"], TEMPLATES["sym-zh"]))
    with pytest.raises(InputError, match="each of another task"):
        Teacher.from_pretrained(tiny_lm, templates=())
    short = save_model(tmp_path, max_position_embeddings=128)
    with pytest.raises(InputError, match="context has 128"):
        Teacher.from_pretrained(short)
    assert Teacher.from_pretrained(tiny_lm, templates=(TEMPLATES["asym-zh"],)).judge(["问"], ["答"], "asym")


def test_header_tells_what_decides_the_scores(tiny_lm):
    teacher = Teacher.from_pretrained(tiny_lm, num_layers=1, query_length=9, templates=(TEMPLATES["sym-zh"],))
    builder = teacher.builder("sym")
    assert teacher.header() == {
        "model": tiny_lm,
        "revision": None,
        "base": weights_fingerprint(load_causal_lm(tiny_lm, torch.bfloat16, num_layers=1)),
        "adapter": None,
        "num_layers": 1,
        "weights_dtype": "float32",
        "query_length": 9,
        "passage_length": 192,
        "prompt": 2,
        "templates": {"sym": TEMPLATES["sym-zh"].text},
        "answers": {"sym": [builder.yes, builder.no]},
    }
    assert len(teacher.decoder.layers) == 1


def test_faulty_model_folders_are_named(tiny_lm, tmp_path):
    with pytest.raises(MissingError, match="no such folder"):
        Teacher.from_pretrained(tmp_path / "no such folder")
    with pytest.raises(InputError, match="num_layers: expected 1 to 2, got 3"):
        Teacher.from_pretrained(tiny_lm, num_layers=3)
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in Path(tiny_lm).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    with pytest.raises(FormatError, match="truncated"):
        Teacher.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(MissingError, match=r"model\.safetensors"):
        Teacher.from_pretrained(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    (folder / "config.json").unlink()
    with pytest.raises(MissingError, match="copy"):
        Teacher.from_pretrained(folder)


def test_a_packages_model_is_named_by_what_is_missing():
    with pytest.raises(MissingError, match="pip install"):
        Teacher.from_pretrained("pypi:no-such-package-of-models")
    with pytest.raises(MissingError, match=r"one \.gguf file or model.safetensors in package numpy, found 0"):
        Teacher.from_pretrained("pypi:numpy")
