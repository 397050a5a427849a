"""The schema for Vespa: its expressions, evaluated as Vespa joins and sums tensors, give the module's own scores."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from d2llm import D2LLM, Index
from d2llm.cli import app
from d2llm.errors import InputError
from d2llm.export.vespa import feed, query, write_application
from d2llm.index import surrogate

PASSAGES = [
    f"{verb} the {noun} of {thing}" for verb in ("open", "close") for noun in ("file", "socket") for thing in "xyz"
]
QUERY = "read the file"
#: A dense tensor with a name for each dimension, by which the names are sorted.
Named = tuple[tuple[str, ...], np.ndarray]


@pytest.fixture(scope="module")
def student(base_model: str) -> D2LLM:
    return D2LLM.create(base_model, lora_r=0, iem_hidden=16, init="xavier")


@pytest.fixture(scope="module")
def index(student: D2LLM, tmp_path_factory: pytest.TempPathFactory) -> Index:
    index = Index.build(
        student,
        PASSAGES,
        tmp_path_factory.mktemp("made") / "ix",
        ids=list("abcdefghijkl"),
        dtype="float32",
        progress=False,
    )
    index.delete(["c"])
    with pytest.MonkeyPatch.context() as patch:
        # What it finds does not matter here.
        patch.setattr(surrogate, "_STEPS", 20)
        index.fit_surrogate(PASSAGES * 2, rank=8, progress=False)
    return index


def tensor(kind: str, cells: object) -> Named:
    """Of a type such as tensor<float>(f[16],g[16]) and its cells in the order of the names."""
    shape = re.findall(r"(\w+)\[(\d+)\]", kind)
    values = np.array(cells["values"] if isinstance(cells, dict) else cells, np.float32)
    return tuple(name for name, _ in shape), values.reshape([int(size) for _, size in shape])


def join(operation: Callable[..., np.ndarray], one: Named, other: Named) -> Named:
    """Cells whose shared dimensions agree, together."""
    names = tuple(sorted({*one[0], *other[0]}))
    parts = [
        each[1].reshape([each[1].shape[each[0].index(n)] if n in each[0] else 1 for n in names])
        for each in (one, other)
    ]
    return names, operation(*parts)


class Document:
    """Evaluates the schema's expressions for one passage and one query."""

    def __init__(self, folder: Path, fields: dict[str, object], asked: dict[str, object]) -> None:
        self.schema = (folder / "schemas" / "passage.sd").read_text()
        self.folder, self.fields, self.asked = folder, fields, asked

    def phase(self, name: str) -> float:
        (expression,) = re.findall(rf"{name} {{[^}}]*?expression: (.*)", self.schema)
        names, value = self.evaluate(expression)
        assert names == ()
        return float(value)

    def evaluate(self, expression: str) -> Named:
        return self.node(ast.parse(expression, mode="eval").body)

    def node(self, node: ast.AST) -> Named:
        match node:
            case ast.Constant(value):
                return (), np.float32(value)
            case ast.UnaryOp(ast.USub(), operand):
                return join(np.subtract, ((), np.float32(0)), self.node(operand))
            case ast.BinOp(left, operator, right):
                operation = {ast.Add: np.add, ast.Mult: np.multiply}[type(operator)]
                return join(operation, self.node(left), self.node(right))
            case ast.Name(name):
                (expression,) = re.findall(rf"function {name}\(\) {{\s*expression: (.*)", self.schema)
                return self.evaluate(expression)
            case ast.Call(ast.Name("relu"), [operand]):
                names, value = self.node(operand)
                return names, np.maximum(value, 0)
            case ast.Call(ast.Name("sum"), [operand, *over]):
                names, value = self.node(operand)
                gone = [each.id for each in over] or list(names)
                left = tuple(name for name in names if name not in gone)
                return left, value.sum(axis=tuple(names.index(name) for name in gone))
            case ast.Call(ast.Name(source), [ast.Name(name)]):
                return getattr(self, source)(name)
        raise AssertionError(ast.dump(node))

    def query(self, name: str) -> Named:
        (kind,) = re.findall(rf"query\({name}\) (tensor\S+)", self.schema)
        return tensor(kind, self.asked[f"input.query({name})"])

    def attribute(self, name: str) -> Named:
        (kind,) = re.findall(rf"field {name} type (tensor\S+)", self.schema)
        return tensor(kind, self.fields[name])

    def constant(self, name: str) -> Named:
        file, kind = re.findall(rf"constant {name} {{\s*file: (\S+)\s*type: (\S+)", self.schema)[0]
        return tensor(kind, json.loads((self.folder / file).read_text()))


def test_its_second_phase_is_the_interaction_module(student: D2LLM, index: Index, tmp_path: Path) -> None:
    write_application(student, tmp_path / "app", index)
    operations = list(feed(index))
    left = [passage for passage, name in zip(PASSAGES, "abcdefghijkl", strict=True) if name != "c"]
    assert [each["fields"]["text"] for each in operations] == left and operations[0]["put"] == "id:d2llm:passage::a"
    asked = json.loads(json.dumps(query(student, QUERY, index, candidates=50)))
    documents = [Document(tmp_path / "app", each["fields"], asked) for each in json.loads(json.dumps(operations))]
    expected = student.score([QUERY] * len(left), left)
    np.testing.assert_allclose([each.phase("second-phase") for each in documents], expected, atol=1e-4)
    hits = index.search(QUERY, k=11, channels=["surrogate"], candidates=11, explain=True)[0]
    by_surrogate = {hit.text: hit.scores["surrogate"] for hit in hits}
    assert [each.phase("first-phase") for each in documents] == [by_surrogate[text] for text in left]
    assert "targetHits: 50}nearestNeighbor(surrogate, surrogate)" in asked["yql"]


def test_without_a_surrogate_words_come_first(student: D2LLM, index: Index, tmp_path: Path) -> None:
    # The surrogate was fitted for the other branch.
    write_application(student, tmp_path / "app", index, task="sym")
    schema = (tmp_path / "app" / "schemas" / "passage.sd").read_text()
    assert "expression: bm25(text)" in schema and "surrogate" not in schema and "rerank-count: 1000" in schema
    assert schema.count("{") == schema.count("}")
    fields, asked = next(feed(index, task="sym"))["fields"], query(student, QUERY, index, "sym")
    assert "surrogate" not in fields and asked["query"] == QUERY
    found = Document(tmp_path / "app", fields, asked).phase("second-phase")
    assert found == pytest.approx(float(student.score([QUERY], PASSAGES[:1], "sym")[0]), abs=1e-4)
    with pytest.raises(InputError, match="folder: expected one that is not there yet"):
        write_application(student, tmp_path / "app")
    with pytest.raises(InputError, match="task"):
        write_application(student, tmp_path / "other", task="both")


def test_the_command(student: D2LLM, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2llm.cli.export.load_student", lambda folder: student)
    folder = tmp_path / "app"
    done = CliRunner().invoke(app, ["export", "vespa", "student", str(folder), "--index", str(index.path)])
    assert done.exit_code == 0, done.output
    assert len((folder / "feed.jsonl").read_text().splitlines()) == 11
    assert sorted(path.name for path in (folder / "constants").iterdir()) == [
        "iem_bias.json",
        "iem_output.json",
        "iem_weight.json",
    ]
    assert torch.equal(
        torch.tensor(json.loads((folder / "constants" / "iem_bias.json").read_text())["values"]),
        student.iem.get_submodule("proj1").bias.detach(),
    )
