"""The tuner, with tiny sizes in the interpreter: rows are right, replace what they should, and are not made twice."""

import json
import shutil

import pytest

from d2llm_kernels.triton import table
from tools import tune

pytestmark = pytest.mark.float64


@pytest.mark.parametrize("kernel,widths", [("pool_softmax", "D=64,H=4"), ("inputs", "F=64"), ("features", "F=64")])
def test_a_row_is_added_once_and_not_made_again(tmp_path, capsys, monkeypatch, kernel, widths):
    monkeypatch.setattr(tune, "POOLING", ({"D": 64, "H": 4},))
    monkeypatch.setattr(tune, "INTERACTION", ({"F": 64},))
    path = tmp_path / "table.json"
    shutil.copy(table.PATH, path)
    arguments = ["--smoke", "--kernel", kernel, "--widths", widths, "--table", str(path)]
    before = json.loads(path.read_text())
    assert tune.main(arguments) == 0
    after = json.loads(path.read_text())
    made = [row for row in after if row["source"].startswith("timed on the interpreter")]
    assert made and {row["kernel"] for row in made} <= {name for name in tune.CANDIDATES if kernel in name}
    for row in made:
        assert row["archs"] == ["interpreter"] and row["tiles"] in tune.candidates(row["kernel"], row["widths"])
    assert [row for row in after if row not in made] == before
    stamp = path.stat().st_mtime_ns
    assert tune.main(arguments) == 0 and path.stat().st_mtime_ns == stamp
    capsys.readouterr()


def test_a_row_takes_its_architecture_from_the_estimated_one():
    old = {"kernel": "k", "archs": ["sm_80", "sm_90"], "dtypes": ["float32"], "widths": {"F": 8}, "tiles": {}}
    other = old | {"widths": {"F": 16}}
    new = old | {"archs": ["sm_90"], "tiles": {"BLOCK_M": 16}}
    assert tune.replaced([old, other], new) == [old | {"archs": ["sm_80"]}, other, new]
    assert tune.replaced([new], new) == [new]


def test_a_wrong_candidate_is_never_chosen(monkeypatch):
    problem = tune.Interaction
    monkeypatch.setattr(problem, "check", lambda self, backend, gradients: tune.Verdict(1.0, 0.5))
    found = tune.fastest("scores", {"F": 64}, tune.SINGLE[0], tune.Timer(), tune.SMOKE, float("inf"))
    assert found is None
