import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save

from d2llm.data.example import text_id
from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.teacher.scores import IDENTITY, ScoreTable, _checksum

HEADER = {
    "model": "m",
    "revision": None,
    "adapter": "ab12",
    "num_layers": 2,
    "templates": {"asym": "Q: {query} P: {passage} 是?"},
    "answers": {"asym": [3, 4]},
    "query_length": 64,
    "passage_length": 192,
    "weights_dtype": "float32",
}
Q, A, B, C = map(text_id, ("q", "a", "b", "c"))


def cosines(n: int, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T


def table(**changes: object) -> ScoreTable:
    logits = {(Q, A): (1.25, -0.5), (Q, B): (np.float32(0.1).item(), 3.0), (A, B): (0.0, 0.0)}
    return ScoreTable({**HEADER, **changes}, logits, {(Q, (A, B, C)): cosines(3), (A, (B,)): cosines(1)})


def contents(scores: ScoreTable) -> tuple[dict, dict]:
    return dict(scores.items()), {group: matrix.tolist() for group, matrix in scores.relations()}


def test_lookups():
    scores = table()
    assert len(scores) == 3 and (Q, A) in scores and (A, Q) not in scores
    assert scores.logits(Q, A) == (1.25, -0.5) and scores.logits(B, Q) is None
    assert scores.probability(Q, A) == pytest.approx(1 / (1 + np.exp(-1.75)))
    assert scores.probability(Q, A, temperature=2.0) == pytest.approx(1 / (1 + np.exp(-0.875)))
    assert scores.probability(C, A) is None
    with pytest.raises(InputError, match="temperature"):
        scores.probability(C, A, temperature=0)


def test_relation_follows_the_order_asked_for():
    scores, matrix = table(), cosines(3)
    found = scores.relation(Q, [C, A])
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, matrix[2, 0]], [matrix[2, 0], 1]], atol=1e-6)
    assert scores.relation(Q, [A, Q]) is None and scores.relation(C, [A]) is None


def test_changing_what_was_returned_leaves_the_table_as_it_was():
    scores = table()
    scores.relation(Q, [A, B])[:] = 9
    assert contents(scores) == contents(table())


ids = st.integers(0, 2**64 - 1).map("{:016x}".format)
floats = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.tuples(ids, ids), st.tuples(floats, floats), max_size=6),
    st.dictionaries(st.tuples(ids, st.lists(ids, min_size=1, max_size=4).map(tuple)), st.integers(0, 99), max_size=3),
)
def test_float32_restores_every_bit(tmp_path_factory, logits, groups):
    path = tmp_path_factory.mktemp("scores") / "s.safetensors"
    scores = ScoreTable(HEADER, logits, {group: cosines(len(group[1]), seed) for group, seed in groups.items()})
    scores.save(path)
    loaded = ScoreTable.load(path)
    assert contents(loaded) == contents(scores)
    assert loaded.header == {**HEADER, "dtype": "float32"}


def test_saving_what_was_loaded_gives_the_same_file(tmp_path):
    table().save(tmp_path / "one")
    ScoreTable.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_float16_rounds_and_says_so(tmp_path):
    rows = {(f"{i:016x}", Q): (float(i) / 7, 1.0) for i in range(200)}
    for dtype in ("float16", "float32"):
        ScoreTable(HEADER, rows, {(Q, (A, B)): cosines(2)}).save(tmp_path / dtype, dtype)
    loaded = ScoreTable.load(tmp_path / "float16")
    assert loaded.header["dtype"] == "float16"
    assert loaded.logits(f"{9:016x}", Q) == (np.float16(9 / 7).item(), 1.0)
    np.testing.assert_allclose(loaded.relation(Q, [A, B]), cosines(2), atol=1e-3)
    assert (tmp_path / "float32").stat().st_size - (tmp_path / "float16").stat().st_size >= 200 * 2 * 2


def test_what_float16_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="float16"):
        ScoreTable(HEADER, {(Q, A): (1e5, 0.0)}).save(tmp_path / "s", "float16")
    with pytest.raises(InputError, match=r"dtype.*'bfloat16'"):
        table().save(tmp_path / "s", "bfloat16")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """Found by the campaign: the error was one of safetensors' own."""
    table().save(tmp_path / "s")
    before, limit = (tmp_path / "s").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="could not be written .*File too large"):
            table(model="other").save(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "s").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (({"x": {1, 2}},), "header"),
        ((HEADER, {(Q, A): (float("nan"), 0.0)}), f"logits.*{A}"),
        ((HEADER, {(Q, "A"): (1.0, 0.0)}), "16 hex digits, got 'A'"),
        ((HEADER, {}, {(Q, (A, B)): cosines(3)}), r"\(2, 2\) matrix, got \(3, 3\)"),
        ((HEADER, {}, {(Q, (A, B)): np.full((2, 2), np.inf)}), "relations"),
        ((HEADER, {}, {(Q, (A, B)): np.full((2, 2), -5.0)}), f"relations: expected cosines from -1 to 1, those of {Q}"),
        ((HEADER, {}, {(Q, (A, B)): np.full((2, 2), np.nan)}), "relations: expected cosines"),
    ],
)
def test_bad_contents_are_refused(arguments, match):
    with pytest.raises(InputError, match=match):
        ScoreTable(*arguments)


@pytest.mark.parametrize("field", [*IDENTITY, "model", "revision"])
def test_another_teacher_is_named_by_what_differs(field):
    table().check_same_teacher({**HEADER, "weights_dtype": "bfloat16"})
    with pytest.raises(MismatchError, match=f"{field}: made with .*, expected 'other'"):
        table().check_same_teacher({**HEADER, field: "other"})


def test_the_weights_tell_where_both_sides_know_them():
    table(base="01", model="./m").check_same_teacher({**HEADER, "base": "01"})
    with pytest.raises(MismatchError, match="base: made with '01', expected '02'"):
        table(base="01").check_same_teacher({**HEADER, "base": "02"})


def test_templates_count_on_the_tasks_that_both_sides_have():
    more = {"templates": {**HEADER["templates"], "sym": "s"}, "answers": {**HEADER["answers"], "sym": [5, 6]}}
    table().check_same_teacher({**HEADER, **more})
    for field, other in (("templates", {"asym": "x"}), ("answers", {"asym": [4, 3]}), ("templates", {"sym": "x"})):
        with pytest.raises(MismatchError, match=f"{field}: made with"):
            table().check_same_teacher({**HEADER, **more, field: other})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingError, match="nothing here"):
        ScoreTable.load(tmp_path / "nothing here")


def test_every_truncation_is_noticed(tmp_path):
    table().save(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "s").write_bytes(whole[:size])
        with pytest.raises(FormatError):
            ScoreTable.load(tmp_path / "s")


def test_every_altered_byte_of_the_tensors_is_noticed(tmp_path):
    table().save(tmp_path / "s")
    whole = bytearray((tmp_path / "s").read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole)):
        altered = whole.copy()
        altered[position] ^= 1
        (tmp_path / "s").write_bytes(altered)
        with pytest.raises(FormatError, match="altered"):
            ScoreTable.load(tmp_path / "s")


def test_an_altered_header_and_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "s"
    table().save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    about = json.loads(metadata["d2llm_teacher"])
    about["header"]["model"] = "another"
    save_file(tensors, path, metadata={"d2llm_teacher": json.dumps(about)})
    with pytest.raises(FormatError, match="checksum"):
        ScoreTable.load(path)
    save_file(tensors, path)
    with pytest.raises(FormatError, match="not a score table"):
        ScoreTable.load(path)
    Path(path).write_text("{}")
    with pytest.raises(FormatError, match="not a score table"):
        ScoreTable.load(path)


def _rewrite(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Save a table whose tensors and metadata are changed, with the checksum that belongs to them."""
    table().save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    about = {"header": dict(HEADER)}
    change(tensors, about)
    about.setdefault(
        "sha256", _checksum(about["header"], {n: t.numpy() for n, t in tensors.items() if t.dtype in KNOWN})
    )
    torch_save(tensors, path, metadata={"d2llm_teacher": json.dumps(about)})


#: Number types that numpy has.
KNOWN = (torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda t, _: t.update(pair_logits=t["pair_logits"].bfloat16()),
            r"pair_logits: expected F32 or F16 \(3, 2\), got BF16",
        ),
        (lambda t, _: t.update(pair_logits=t["pair_logits"].to(torch.float8_e4m3fn)), "pair_logits: .* got F8_E4M3"),
        (lambda t, _: t.update(pair_logits=t["pair_logits"].double()), "pair_logits: .* got F64"),
        (lambda t, _: t.update(pair_logits=t["pair_logits"][..., None]), r"pair_logits: .* got F32 \(3, 2, 1\)"),
        (lambda t, _: t.update(pair_ids=t["pair_ids"][:2].clone()), r"pair_logits: expected F32 or F16 \(2, 2\)"),
        (lambda t, _: t.update(group_cosines=t["group_cosines"] * 0 - 5), "expected cosines from -1 to 1"),
        (lambda t, _: t.update(group_sizes=torch.tensor([5, -1])), "a group of no passage"),
        (lambda t, _: t.update(more=torch.zeros(1)), "expected the tensors"),
        (lambda t, _: t.pop("group_sizes"), "expected the tensors"),
        (lambda _, about: about.update(header=[["model", "m"]]), "it has no header"),
    ],
)
def test_what_is_no_table_is_refused_though_its_checksum_fits(tmp_path, change, fault):
    _rewrite(tmp_path / "s", change)
    with pytest.raises(FormatError, match=fault):
        ScoreTable.load(tmp_path / "s")


@pytest.mark.parametrize("about", ["[" * 100_000, "{}", "[]", "3", '{"header": {}, "header": {}}'])
def test_metadata_of_another_kind_is_refused(tmp_path, about):
    table().save(tmp_path / "s")
    save_file(load_file(tmp_path / "s"), tmp_path / "s", metadata={"d2llm_teacher": about})
    with pytest.raises(FormatError, match="not a score table"):
        ScoreTable.load(tmp_path / "s")
