import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2llm.data.example import Example, text_id
from d2llm.errors import FormatError, InputError, MismatchError, MissingError
from d2llm.teacher.model import Teacher
from d2llm.teacher.scores import ScoreTable
from d2llm.teacher.scoring import collect, plan_groups, plan_pairs, score
from tests.processes import started

EXAMPLES = [Example(f"find {i}", f"def f{i}(): pass", (f"x = {i}", f"class C{i}: ..."), "asym") for i in range(7)]
PAIRS = [(f"query {i}", f"passage {i * i}") for i in range(40)]


class Slow(Teacher):
    """A teacher that takes its time."""

    def judge(self, queries, passages, task, **options):
        time.sleep(0.1)
        return super().judge(queries, passages, task, **options)


def score_slowly(model: str, folder: Path) -> None:
    """In a process of its own."""
    score(Slow.from_pretrained(model), list(plan_pairs(PAIRS, "asym", 2)), folder, show_progress=False)


class Counting(Teacher):
    """A teacher that remembers what it was asked."""

    def judge(self, queries, passages, task, **options):
        self.asked = [*getattr(self, "asked", []), *zip(queries, passages, strict=True)]
        return super().judge(queries, passages, task, **options)


@pytest.fixture
def teacher(tiny_lm):
    return Counting.from_pretrained(tiny_lm)


def test_groups_hold_logits_and_cosines_of_the_features(teacher, tmp_path):
    scores = collect(score(teacher, list(plan_groups(EXAMPLES, 8)), tmp_path, show_progress=False))
    assert len(scores) == 21 and len(list(scores.relations())) == 7
    example = EXAMPLES[3]
    logits, features = teacher.judge([example.query] * 3, example.passages, "asym")
    query, passages = text_id(example.query), [text_id(passage) for passage in example.passages]
    for passage, expected in zip(passages, logits, strict=True):
        np.testing.assert_allclose(scores.logits(query, passage), expected, atol=2e-5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(scores.relation(query, passages), unit @ unit.T, atol=2e-5)
    scores.check_same_teacher(teacher.header())


def test_finished_shards_are_never_made_again(teacher, tmp_path):
    work = list(plan_pairs(PAIRS, "asym", 10))
    files = score(teacher, work[:2], tmp_path, show_progress=False)
    times = [file.stat().st_mtime_ns for file in files]
    teacher.asked = []
    assert score(teacher, work, tmp_path, show_progress=False)[:2] == files
    assert sorted(teacher.asked) == sorted(PAIRS[20:])
    assert [file.stat().st_mtime_ns for file in files] == times


def test_sigkill_loses_no_finished_shard(teacher, tiny_lm, tmp_path):
    process = started(score_slowly, tiny_lm, tmp_path)
    while len(list(tmp_path.glob("*.safetensors"))) < 3 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = set(tmp_path.glob("*.safetensors"))
    work = list(plan_pairs(PAIRS, "asym", 2))
    assert 3 <= len(finished) < len(work)
    files = score(teacher, work, tmp_path, show_progress=False)
    assert len(teacher.asked) == len(PAIRS) - 2 * len(finished)
    assert set(map(text_id, next(zip(*teacher.asked, strict=True)))).isdisjoint(
        query for file in finished for (query, _), _ in ScoreTable.load(file).items()
    )
    assert len(collect(files)) == len(PAIRS)


def test_an_interrupt_leaves_nothing_half_written(teacher, tmp_path, monkeypatch):
    work = list(plan_pairs(PAIRS, "asym", 10))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("d2llm.teacher.scores.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(teacher, work, tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_processes_share_the_shards(teacher, tmp_path):
    work = list(plan_pairs(PAIRS, "asym", 6))
    files = score(teacher, work, tmp_path, shard=0, num_shards=3, show_progress=False)
    with pytest.raises(MissingError, match="4 of 7 shards are missing"):
        collect(files)
    for shard in (1, 2):
        assert score(teacher, work, tmp_path, shard=shard, num_shards=3, show_progress=False) == files
    assert sorted(teacher.asked) == sorted(PAIRS)
    assert len(collect(files)) == len(PAIRS)


def test_a_pair_under_both_tasks_is_refused(teacher, tmp_path):
    work = [*plan_pairs(PAIRS[:4], "asym"), *plan_pairs(PAIRS[3:4], "sym")]
    with pytest.raises(InputError, match=r"is asked under both tasks.*--task.*data.teacher="):
        score(teacher, work, tmp_path, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_another_teacher_or_task_never_takes_these_shards(teacher, tiny_lm, tmp_path):
    work = list(plan_pairs(PAIRS[:4], "asym"))
    files = score(teacher, work, tmp_path, show_progress=False)
    other = Counting.from_pretrained(tiny_lm, num_layers=1)
    others = score(other, work, tmp_path, show_progress=False)
    assert len(other.asked) == 4 and not set(files) & set(others)
    assert not set(files) & set(score(teacher, list(plan_pairs(PAIRS[:4], "sym")), tmp_path, show_progress=False))
    with pytest.raises(MismatchError, match="num_layers"):
        collect(files + others)


def test_a_pair_that_comes_twice_is_one_pair(teacher, tmp_path):
    files = score(teacher, list(plan_pairs([PAIRS[0], PAIRS[1], PAIRS[0]], "asym", 2)), tmp_path, show_progress=False)
    assert len(collect(files)) == 2


def test_bad_input_is_refused(teacher, tmp_path):
    with pytest.raises(InputError, match="shard: expected 0 to 1, got 2"):
        score(teacher, [], tmp_path, shard=2, num_shards=2)
    for plan in (lambda: plan_pairs(PAIRS, "asym", 0), lambda: plan_groups(EXAMPLES, 0)):
        with pytest.raises(InputError, match="shard_pairs: expected at least 1, got 0"):
            list(plan())
    with pytest.raises(InputError, match="files"):
        collect([])
    (file,) = score(teacher, list(plan_pairs(PAIRS[:2], "asym")), tmp_path, show_progress=False)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match=file.name):
        collect([file])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["sym", "asym"])), max_size=12), st.integers(1, 9))
def test_plans_hold_every_group_once(shapes, shard_pairs):
    examples = [Example(f"q{i}", "p", tuple(f"n{j}" for j in range(k)), t) for i, (k, t) in enumerate(shapes)]
    work = list(plan_groups(examples, shard_pairs))
    found = [(each.task, each.queries[start], each.passages[start:end]) for each in work for start, end in each.groups]
    assert sorted(found) == sorted((example.task, example.query, example.passages) for example in examples)
    for each in work:
        assert len(each.queries) == len(each.passages) == each.groups[-1][1]
        assert len(each.groups) == 1 or len(each.queries) <= shard_pairs
