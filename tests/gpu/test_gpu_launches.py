"""The report's launches of every kernel, wherever this runs: each is right, and is of the kernel that it names."""

import pytest
import torch

from benchmarks.gpu_report import experimental, launches
from d2llm_kernels.backends.cuda import library
from tests.gpu.conftest import BACKENDS, EMULATED, ON_GPU

LAUNCHES = list(launches.launches(torch.device("cuda" if ON_GPU else "cpu")))
HOPPER = {"attn_pool": "hopper_pool_forward", "iem_scores": "hopper_iem_scores", "fp8": "hopper_iem_scores_fp8"}


def test_every_backend_that_is_here_is_launched():
    assert {launch.name.split()[0] for launch in LAUNCHES if not launch.name.startswith(experimental.HOPPER)} == set(
        BACKENDS
    )


# The kernels are those of the other tests, at the sizes of the report.
@pytest.mark.rest
@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
def test_a_launch_is_right(launch):
    right, line = launches.say(launch)
    assert right, line


@pytest.mark.skipif(not EMULATED, reason="counts launches in the emulation")
@pytest.mark.parametrize("name", HOPPER)
def test_the_kernels_for_hopper_gpus_are_those_that_run(name):
    (launch,) = (launch for launch in LAUNCHES if launch.name == f"{experimental.HOPPER} {name}")
    before = library.module().launches()[HOPPER[name]]
    assert launch.judge().passed and library.module().launches()[HOPPER[name]] > before
