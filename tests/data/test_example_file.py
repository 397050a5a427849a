"""Examples that stay in their file are those that a reader of all of them gives, and take little memory each."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from d2llm.data.columns import changed
from d2llm.data.example import Example
from d2llm.data.example_file import ExampleFile
from d2llm.data.jsonl import read_examples
from d2llm.data.positives import KnownPositives
from d2llm.data.split import split
from d2llm.errors import FormatError, MismatchError
from d2llm.training.config import DataConfig, RunConfig
from d2llm.training.plan import Plan, PlannedBatches

ROWS = 3000
#: Bytes of an example in memory: what stays, and the most that there is at once.
STAYS, MOST = 80, 250


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "many.jsonl"
    text = "".join(
        json.dumps(
            {
                "query": f"what is number {i - i % 2} called",
                "positive": f"the name of {i}, given {'at length ' * 20}",
                "negatives": [f"the name of {(i + 1) % ROWS}, given {'at length ' * 20}", f"no name {i}"],
                "task": ("asym", "sym")[i % 3 == 0],
            }
        )
        + "\n"
        for i in range(ROWS)
    )
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_read_is_what_a_reader_of_all_gives(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    rows = ({"query": f"q\u2028 ä {i}", "positive": "p", "scores": [[1, i]]} for i in range(3))
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\n  \n" + lines[1] + b"\n" + lines[2])
    found, expected = ExampleFile(path), read_examples(path)
    assert list(found) == expected and [each.line for each in found] == [1, 4, 5]
    assert found[-1] == expected[-1] and found[::2] == expected[::2]
    with pytest.raises(IndexError):
        found[3]


def test_a_run_parts_and_cleans_and_orders_them_as_it_does_those_in_memory(file: Path) -> None:
    def run(examples: ExampleFile | list[Example]) -> tuple[list[Example], list[Example], list[list[int]]]:
        parts = split(examples, 0.1, 1)
        plan = Plan.of(parts.train, RunConfig(batch_size=16), DataConfig(one_task_batches=True))
        batches = [[key.example for key in batch] for batch in PlannedBatches(plan, 0, lambda: 1)]
        return list(changed(parts.train, KnownPositives(parts.train).clean)), parts.held_out, batches

    assert run(ExampleFile(file)) == run(read_examples(file))


def test_an_example_takes_little_memory(file: Path) -> None:
    tracemalloc.start()
    try:
        examples = ExampleFile(file)
        parts = split(examples, 0.01, 0)
        known = KnownPositives(parts.train)
        train = changed(parts.train, known.clean)
        plan = Plan.of(train, RunConfig(batch_size=32, max_steps=3), DataConfig())
        batches = PlannedBatches(plan, 0, lambda: 0)
        assert [train[key.example].negatives for key in next(iter(batches))]
        stays, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stays < STAYS * ROWS and most < MOST * ROWS, (stays / ROWS, most / ROWS)


def test_a_broken_line_is_told_before_any_is_asked_for(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:20], '{"query": "q"}\n', *lines[20:40]]), encoding="utf-8")
    with pytest.raises(FormatError, match=r"broken\.jsonl:21: positive: missing"):
        ExampleFile(path)


def test_a_file_that_changes_is_not_read_on(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.jsonl"
    path.write_bytes(file.read_bytes())
    examples = ExampleFile(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(MismatchError, match="expected the examples to stay as they are"):
        examples[0]
