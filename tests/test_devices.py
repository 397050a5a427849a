"""Where models compute when nobody says so."""

import pytest
import torch

from d2llm.devices import accelerator, best_device


@pytest.mark.parametrize("there", [False, True])
def test_a_torch_built_for_an_accelerator_may_be_on_a_machine_without_one(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built_for_cuda(check_available: bool = False) -> torch.device | None:
        return torch.device("cuda") if there or not check_available else None

    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for_cuda)
    assert accelerator() == (torch.device("cuda") if there else None)
    assert best_device().type == ("cuda" if there else "cpu")
