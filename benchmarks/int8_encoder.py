"""What it costs a search to encode by linear layers in int8: a table in docs/quality.md.

python -m benchmarks.int8_encoder --write
"""

import argparse
import sys
from pathlib import Path

from benchmarks.document import put
from benchmarks.quality import DOCUMENT, TESTS, Measured, interval, sets
from d2llm.shipped import STUDENT
from d2llm.student import D2LLM

_NAME, _KINDS = "student", ("cosine", "IEM", "hybrid")


def rows(whole: Measured, rounded: Measured, data: str) -> list[str]:
    """Lines of a set: the MRR of every way to score with embeddings in float and by int8, and their difference."""
    lines = []
    for kind in _KINDS:
        before, after = (each.ranks(data, f"{_NAME}, {kind}") for each in (whole, rounded))
        assert before is not None and after is not None, f"{kind} on {data} was not measured"
        lines.append(f"| {data} | {kind} | {before.mean():.3f} | {after.mean():.3f} | {interval(after, before)} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_encoder", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/int8-encoder"), help="folder of what has been measured")
    parser.add_argument("--student", default=str(STUDENT), help="a student's folder")
    parser.add_argument("--cosqa", type=Path, help="folder of CoSQA's codes.json and dev.json, which is not shipped")
    parser.add_argument("--only", nargs="*", help="sets to tell of; all but test by default")
    parser.add_argument("--write", action="store_true", help="bring docs/quality.md up to it")
    asked = parser.parse_args(arguments)
    known = sets(asked.cosqa)
    whole = Measured(asked.work / "float")
    rounded = Measured(asked.work / "int8", lambda folder: D2LLM.from_pretrained(folder).quantize_encoder())
    lines = ["| set | by | float | int8 | difference, 95 % |", "| --- | --- | ---: | ---: | ---: |"]
    for name in [name for name in known if name not in TESTS] if asked.only is None else asked.only:
        data = known[name]()
        for measured in (whole, rounded):
            measured.measure(name, data, {_NAME: asked.student})
        lines += rows(whole, rounded, name)
    print(*lines, sep="\n")
    if asked.write:
        put(DOCUMENT, {"int8-encoder": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
