"""The schema for Vespa, statement by statement, beside the one that Vespa's own Python package writes."""

import re
from pathlib import Path

import pytest

pytest.importorskip("vespa")


from vespa.package import (
    HNSW,
    ApplicationPackage,
    Document,
    Field,
    FieldSet,
    FirstPhaseRanking,
    Function,
    RankProfile,
    Schema,
    SecondPhaseRanking,
)

from d2llm import D2LLM, Index
from d2llm.export.vespa import SCHEMA, write_application
from d2llm.index import surrogate
from tests.conftest import save_base


def statements(schema: str) -> list[str]:
    """The statements of a schema with the names of the blocks that they stand in, however they are laid out."""
    found, inside = [], []
    # A block of one expression is written as a line too.
    schema = re.sub(r"expression\s*\{([^{}]*)\}", lambda one: f"expression: {' '.join(one[1].split())}\n", schema)
    for line in filter(None, map(str.strip, schema.splitlines())):
        if line.endswith("{"):
            inside.append(line[:-1].strip())
        elif line == "}":
            inside.pop()
        else:
            found.append(" > ".join([*inside, line]))
    assert not inside
    return sorted(found)


@pytest.mark.parametrize("fitted", [True, False])
def test_vespa_s_own_package_writes_the_same(fitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = D2LLM.create(save_base(tmp_path / "base"), lora_r=0, iem_hidden=16, init="xavier")
    texts = [f"{verb} the {noun}" for verb in ("open", "close", "read") for noun in ("file", "socket", "x", "y")]
    index = Index.build(student, texts, tmp_path / "ix", dtype="float32", progress=False)
    if fitted:
        monkeypatch.setattr(surrogate, "_STEPS", 20)
        index.fit_surrogate(texts * 2, rank=8, progress=False)
    write_application(student, tmp_path / "app", index)
    written = (tmp_path / "app" / "schemas" / f"{SCHEMA}.sd").read_text()

    fields = [
        Field("id", "string", indexing=["attribute", "summary"]),
        Field("text", "string", indexing=["index", "summary"], index="enable-bm25"),
        Field("projected", "tensor<float>(f[16])", indexing=["attribute"]),
    ]
    inputs, first = [("query(projected)", "tensor<float>(f[16])")], "bm25(text)"
    if fitted:
        kind = "tensor<int8>(r[8])"
        near = HNSW(distance_metric="dotproduct")
        fields.append(Field("surrogate", kind, indexing=["attribute", "index"], ann=near))
        inputs.append(("query(surrogate)", kind))
        first = "sum(query(surrogate) * attribute(surrogate))"
    bias = float(student.iem.linear2.bias.detach())
    profile = RankProfile(
        "iem",
        inputs=inputs,
        functions=[
            Function("hidden", "relu(query(projected) + attribute(projected))"),
            Function("features", "relu(sum(hidden * constant(iem_weight), f) + constant(iem_bias))"),
        ],
        first_phase=FirstPhaseRanking(first),
        second_phase=SecondPhaseRanking(f"sum(features * constant(iem_output)) + {bias}", rerank_count=1000),
    )
    schema = Schema(SCHEMA, Document(fields), [FieldSet("default", ["text"])], [profile])
    expected = statements(ApplicationPackage("passages", [schema]).schema.schema_to_text)
    # It writes Vespa's defaults for the graph of neighbours, and knows no constants that are read from files.
    defaults = [each for each in expected if "> hnsw >" in each]
    assert [int(each.split()[-1]) for each in defaults] == ([16, 200] if fitted else [])
    found = statements(written)
    constants = [each for each in found if "> constant iem_" in each]
    assert len(constants) == 6
    assert [each for each in found if each not in constants] == [each for each in expected if each not in defaults]
