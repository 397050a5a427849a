"""The C++ kernels by each set of instructions that the CPU has: every operation keeps its contract.

The set that is taken where none is asked for is that of all other tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2llm_kernels.backends.cpu import library

FOLDER = Path(__file__).parent
TESTS = (
    "test_attn_pool.py::test_parity",
    "test_iem_scores.py::test_parity",
    "test_in_batch_terms.py",
    "test_int8.py::test_scores_equal_the_formula_to_the_last_bit",
    "test_inner.py::test_parity",
    "test_int8_linear.py::test_parity",
)


def others() -> list[object]:
    """Every other set that runs here, of the same templates: the oldest and the newest ``rest``, others ``full``."""
    if library.missing() is not None:
        return []
    built = library.module().build_info()
    names = [name for name in built["available"] if name != built["instruction_set"]]
    ends = (names[0], names[-1])
    return [pytest.param(name, marks=pytest.mark.rest if name in ends else pytest.mark.full) for name in names]


@pytest.mark.cpu
@pytest.mark.parametrize("name", others())
def test_every_one_keeps_the_contract(name):
    options = [
        "-q",
        "--capture=sys",
        "-p",
        "no:cacheprovider",
        "-m",
        "",
        "-k",
        "cpu and (2threads or not threads) and not opcheck",
    ]
    command = [sys.executable, "-m", "pytest", *options, *(str(FOLDER / test) for test in TESTS)]
    done = subprocess.run(command, env={**os.environ, "D2LLM_KERNELS_ISA": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
