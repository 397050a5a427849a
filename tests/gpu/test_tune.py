"""The tuner, with tiny sizes in the interpreter: rows are right, replace what they should, and outlive every end."""

import json
import math
import shutil
import time

import pytest

from d2llm_kernels.backends.triton import table
from tools import tune
from tools.tried import FAILED, RIGHT, STARTED, Tried

pytestmark = pytest.mark.float64

POOL = tune.Row("pool_forward", {"D": 64, "H": 4}, *tune.SINGLE)
SCORES = tune.Row("scores", {"F": 64}, *tune.SINGLE)
ARCH, SOURCE = "interpreter", "timed on the interpreter"


@pytest.mark.parametrize(
    "kernel,widths",
    [
        ("pool_softmax", "D=64,H=4"),
        *(pytest.param(kernel, "F=64", marks=pytest.mark.rest) for kernel in ("inputs", "features")),
    ],
)
def test_a_row_is_added_once_and_not_made_again(tmp_path, capsys, monkeypatch, kernel, widths):
    monkeypatch.setattr(tune, "POOLING", ({"D": 64, "H": 4},))
    monkeypatch.setattr(tune, "INTERACTION", ({"F": 64},))
    path = tmp_path / "table.json"
    shutil.copy(table.PATH, path)
    arguments = ["--smoke", "--kernel", kernel, "--widths", widths, "--table", str(path)]
    arguments += ["--tried", str(tmp_path / "tried.jsonl")]
    before = json.loads(path.read_text())
    assert tune.main(arguments) == 0
    after = json.loads(path.read_text())
    made = [row for row in after if row["source"].startswith(SOURCE)]
    assert made and {row["kernel"] for row in made} <= {name for name in tune.CANDIDATES if kernel in name}
    for row in made:
        asked = tune.Row(row["kernel"], row["widths"], *tune.SINGLE)
        assert row["archs"] == [ARCH] and row["tiles"] in tune.candidates(asked, ARCH) and "partial" not in row
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


def test_float32_is_tried_as_deep_as_its_error_allows():
    for dtype, deepest in ((tune.SINGLE, table.DEEPEST), (tune.HALF, 128)):
        row = tune.Row("pool_products", {"D": 4096, "H": 32}, *dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tune, "interpreted", lambda: False)
            assert max(tiles["BLOCK_D"] for tiles in tune.candidates(row, "sm_90")) == deepest


def test_a_wrong_candidate_is_never_chosen(tmp_path, monkeypatch):
    problem = tune.Interaction
    monkeypatch.setattr(problem, "check", lambda self, backend, gradients: tune.Verdict(1.0, 0.5))
    tried = SCORES.tried(tmp_path / "tried", SOURCE)
    assert tune.advance(SCORES, tried, tune.Timer(), tune.SMOKE, math.inf) is None
    # Every one was, and there is nothing for the table.
    assert tune.keep(SCORES, tried, ARCH, SOURCE, tmp_path / "table.json") and not (tmp_path / "table.json").exists()


@pytest.fixture
def timed(monkeypatch):
    """All candidates of a GPU, each said to take as long as this function of it says."""

    def let(seconds):
        class Stopwatch(tune.Timer):
            def sample(self, call):
                return type("Sample", (), {"median_s": seconds(call())})

        def trial(*_):
            return tune.Trial(lambda: table.tiles("pool_forward", ARCH, POOL.dtype, **POOL.widths), Right)

        monkeypatch.setattr(tune, "trial", trial)
        monkeypatch.setattr(tune, "interpreted", lambda: False)
        return Stopwatch()

    return let


class Right:
    passed = True


def test_a_deadline_inside_a_row_keeps_the_best_and_a_later_run_goes_on(tmp_path, timed, monkeypatch, capsys):
    path, log = tmp_path / "table.json", tmp_path / "tried.jsonl"
    shutil.copy(table.PATH, path)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    timer = timed(lambda tiles: 1e-3 * tiles["BLOCK_D"] / tiles["SLICE"])
    every = len(tune.candidates(POOL, ARCH))
    # Several times as many as the first deadline leaves time for.
    assert every > 50

    def run(deadline):
        tried = POOL.tried(log, SOURCE)
        best = tune.advance(POOL, tried, timer, tune.SMOKE, deadline, every)
        whole = tune.keep(POOL, tried, ARCH, SOURCE, path)
        (row,) = (row for row in table.read(path) if row["source"] == SOURCE)
        assert best is not None and row["tiles"] == best[1]
        return whole, row

    whole, row = run(deadline=5)
    tried = len(log.read_text().split('"right"')) + len(log.read_text().split('"slower"')) - 2
    assert not whole and row["partial"] == f"{tried} of {every} candidates" and 3 <= tried < 10
    assert not tune.finished(POOL, ARCH, "the interpreter", path)
    whole, row = run(deadline=math.inf)
    assert whole and "partial" not in row and tune.finished(POOL, ARCH, "the interpreter", path)
    assert row["tiles"]["BLOCK_D"] == 64 and row["tiles"]["SLICE"] == 64
    # Nothing was tried twice.
    assert log.read_text().count('"started"') == every
    capsys.readouterr()


def test_lags_and_neighbours_of_the_best_come_first(tmp_path, timed):
    timer = timed(lambda tiles: 1.0 / tiles["num_stages"])
    tried = POOL.tried(tmp_path / "tried", SOURCE)
    tune.advance(POOL, tried, timer, tune.SMOKE, math.inf, 24)
    lines = [json.loads(line) for line in (tmp_path / "tried").read_text().splitlines() if line]
    order = [line["tiles"] for line in lines if line["outcome"] == STARTED]
    now = tune.usual(POOL, ARCH)
    assert order[0] == now and [tiles["LAG"] for tiles in order[1:4]] == [0, 132, 264]
    assert all(tune.distance(POOL.kernel, tiles, now) == 0 for tiles in order[:4])
    # Once a neighbour is better, its own neighbours come first.
    best = max(range(24), key=lambda index: order[index]["num_stages"])
    assert tried.best()[1]["num_stages"] == 4 and best < 23
    assert all(tune.distance(POOL.kernel, tiles, order[best]) <= 1 for tiles in order[best + 1 :])


def test_what_never_came_back_is_tried_once_more_and_torn_lines_are_none(tmp_path):
    log = tmp_path / "tried"
    tiles = {"BLOCK_M": 64}
    Tried(log, {"kernel": "k"}).note(tiles, STARTED)
    log.write_text(log.read_text() + '\n{"kernel": "k", "til')
    again = Tried(log, {"kernel": "k"})
    assert not again.done(tiles)
    again.note(tiles, STARTED)
    assert Tried(log, {"kernel": "k"}).done(tiles) and not Tried(log, {"kernel": "other"}).done(tiles)
    other = {"BLOCK_M": 32}
    again.note(other, RIGHT, seconds=2.0)
    again.note({"BLOCK_M": 16}, FAILED, why="no registers")
    assert Tried(log, {"kernel": "k"}).best() == (2.0, other)
    Tried(log, {"kernel": "other"}).note(other, RIGHT, seconds=1.0)
    again.forget()
    assert Tried(log, {"kernel": "k"}).best() is None and Tried(log, {"kernel": "other"}).best() == (1.0, other)


def test_a_candidate_that_breaks_the_gpu_is_noted_before_the_error_ends_the_run(tmp_path, timed):
    def broken(tiles):
        raise RuntimeError("an illegal memory access was encountered")

    timer = timed(broken)
    timer.free = lambda: broken(None)
    tried = POOL.tried(tmp_path / "tried", SOURCE)
    with pytest.raises(RuntimeError, match="illegal"):
        tune.advance(POOL, tried, timer, tune.SMOKE, math.inf)
    assert tried.done(tune.usual(POOL, ARCH)) and tried.best() is None
