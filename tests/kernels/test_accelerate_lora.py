"""peft's LoRA layers after ``accelerate``: the same results, gradients, state and behaviour, by one operator."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import d2llm_kernels as dk
from d2llm_kernels.modules import lora


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 6, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def adapted(dtype=torch.float32, layers=("first", "second"), **fields):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(layers), init_lora_weights=False, **fields)
    return get_peft_model(Layers().to(dtype), config, autocast_adapter_dtype=False)


def pair(dtype=torch.float32, **fields):
    """A model and its accelerated copy."""
    plain = adapted(dtype, **fields)
    return plain, dk.accelerate(copy.deepcopy(plain))


def calls(monkeypatch):
    """Counts what goes through the operator."""
    seen, operator = [], lora.lora_linear
    monkeypatch.setattr(lora, "lora_linear", lambda *args: seen.append(1) or operator(*args))
    return seen


def trained(model, x, seed=1):
    torch.manual_seed(seed)
    y = model(x)
    y.square().sum().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", (0.0, 0.5))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_the_same_results_and_gradients(dropout, dtype, monkeypatch):
    plain, fast = pair(dtype, lora_dropout=dropout)
    seen = calls(monkeypatch)
    x = torch.randn(3, 5, 12, dtype=dtype)
    expected, got = (trained(model.train(), x) for model in (plain, fast))
    assert len(seen) == 2
    torch.testing.assert_close(got, expected)
    assert len(got[1]) == 4


def test_under_autocast_the_factors_keep_float32_gradients():
    plain, fast = pair()
    x = torch.randn(40, 12)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (trained(model, x) for model in (plain, fast))
    assert all(gradient.dtype == torch.float32 for gradient in got[1].values())
    torch.testing.assert_close(got, expected, rtol=5e-2, atol=5e-2)


def test_state_class_merging_and_switching_off_are_peft_s(monkeypatch):
    plain, fast = pair()
    x = torch.randn(7, 12)
    expected = plain(x)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert type(fast.base_model.model.first).__mro__[2] is type(plain.base_model.model.first)
    seen = calls(monkeypatch)
    with fast.disable_adapter():
        torch.testing.assert_close(fast(x), plain.base_model.model.second.base_layer(plain_hidden(plain, x)))
    fast.merge_adapter()
    torch.testing.assert_close(fast(x), expected)
    assert not seen
    fast.unmerge_adapter()
    torch.testing.assert_close(fast(x), expected)
    assert len(seen) == 2
    torch.testing.assert_close(copy.deepcopy(fast).merge_and_unload()(x), expected)


def plain_hidden(model, x):
    return torch.relu(model.base_model.model.first.base_layer(x))


def test_other_adapters_go_their_own_way(monkeypatch):
    seen = calls(monkeypatch)
    x = torch.randn(7, 12)
    for fields in ({"use_dora": True}, {"lora_bias": True, "layers": ("first",)}):
        plain, fast = pair(**fields)
        torch.testing.assert_close(fast(x), plain(x))
    assert not seen
    plain, fast = pair()
    for model in (plain, fast):
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    fast.load_state_dict(plain.state_dict())
    seen.clear()
    torch.testing.assert_close(fast(x), plain(x))
    # The second layer has one of the two.
    assert len(seen) == 1


def test_a_float32_adapter_beside_a_bfloat16_layer():
    plain, fast = pair(torch.bfloat16)
    for model in (plain, fast):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    x = torch.randn(30, 12).bfloat16()
    assert fast(x).dtype == torch.bfloat16
    torch.testing.assert_close(fast(x), plain(x), rtol=3e-2, atol=3e-2)
    # An input that the layer itself would refuse is refused by it.
    with pytest.raises(RuntimeError):
        fast(x.float())


def test_accelerating_twice_changes_the_backend_alone():
    _, fast = pair()
    layer = fast.base_model.model.first
    dk.accelerate(fast, backend="reference")
    assert layer is fast.base_model.model.first and layer.kernels_backend == "reference"
    assert type(layer).__name__ == "FusedLinear"
