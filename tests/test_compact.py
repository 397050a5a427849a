"""Eight bits keep a weight to a hundredth of the largest beside it, whatever stands on the diagonal."""

import pytest
import torch

from d2llm.compact import restore, shrink


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (96, 96)])
def test_a_matrix_comes_back_close(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=generator) * torch.logspace(-4, 0, shape[0])[:, None]
    value = value if shape[0] <= shape[1] else value.flip(0).T.reshape(shape).contiguous()
    packed = shrink({"w": value})
    assert packed["w"].dtype == torch.int8 and packed["w:scale"].numel() == min(shape)
    (back,) = restore(packed).values()
    along = 1 if shape[0] <= shape[1] else 0
    assert ((back - value).abs() <= value.abs().amax(along, keepdim=True) / 100).all()


def test_what_was_learnt_beside_the_identity_is_not_rounded_by_it() -> None:
    learnt = 1e-3 * torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
    back = restore(shrink({"w": torch.eye(80) + learnt}))["w"]
    off = ~torch.eye(80, dtype=torch.bool)
    assert (back - learnt)[off].abs().max() < 1e-4
    assert (back.diag() - 1 - learnt.diag()).abs().max() < 1e-3


def test_a_diagonal_is_all_that_a_diagonal_matrix_takes() -> None:
    packed = shrink({"w": 0.5 * torch.eye(80)})
    assert packed.keys() == {"w:diagonal"}
    assert torch.equal(restore(packed)["w"], 0.5 * torch.eye(80))


def test_small_and_other_tensors_are_halved_or_left() -> None:
    packed = shrink({"bias": torch.ones(3), "zeros": torch.zeros(2, 4096)})
    assert packed["bias"].dtype == torch.float16
    assert torch.equal(restore(packed)["zeros"], torch.zeros(2, 4096))
    ids = torch.arange(6, dtype=torch.uint8)
    assert restore({"ids": ids})["ids"] is ids


def test_a_matrix_without_its_steps_is_refused() -> None:
    packed = shrink({"w": torch.ones(64, 100)})
    del packed["w:scale"]
    with pytest.raises(KeyError):
        restore(packed)
