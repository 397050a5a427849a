"""Attention on a CPU: torch's own, forward and backward, whatever the mask, the heads and the number type."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from d2llm import attention
from d2llm.backbone import load_encoder


class Layer(nn.Module):
    def __init__(self, causal: bool):
        super().__init__()
        self.is_causal = causal


def tensors(batch, heads, groups, length, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = ((batch, heads, length, 8), (batch, groups, keys, 8), (batch, groups, keys, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def formula(query, key, value, mask, causal):
    share = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(share, 1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal).transpose(1, 2)


def masks(batch, length, keys):
    generator = torch.Generator().manual_seed(3)
    seen = torch.rand(batch, 1, length, keys, generator=generator) < 0.6
    seen[..., 0] = True
    return {"none": None, "given": seen, "shared": seen[:1]}


@pytest.mark.parametrize("at_once", (1, 1 << 20))
@pytest.mark.parametrize("heads,groups", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("kind", ("none", "given", "shared", "causal"))
def test_it_is_torch_s(kind, heads, groups, at_once, monkeypatch):
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    inputs = tensors(5, heads, groups, 7, 7)
    mask, causal = masks(5, 7, 7).get(kind), kind == "causal"
    got, _ = attention.attention(Layer(causal), *inputs, mask)
    expected = formula(*inputs, mask, causal)
    torch.testing.assert_close(got, expected)
    slope = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, inputs, slope) for each in (got, expected)))


def test_gradcheck_and_a_scale_of_its_own():
    inputs = tensors(2, 4, 2, 3, 3)
    mask = masks(2, 3, 3)["given"]
    assert torch.autograd.gradcheck(lambda *t: attention.attention(Layer(False), *t, mask, scaling=0.3)[0], inputs)


def test_a_row_that_sees_nothing_is_finite():
    inputs = tensors(1, 2, 2, 3, 3)
    got, _ = attention.attention(Layer(False), *inputs, torch.zeros(1, 1, 3, 3, dtype=torch.bool))
    got.sum().backward()
    assert got.isfinite().all() and all(each.grad.isfinite().all() for each in inputs)


def test_under_autocast_it_computes_in_its_type():
    inputs = tensors(2, 4, 2, 5, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention.attention(Layer(True), *inputs, None)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), formula(*inputs, None, True), rtol=2e-2, atol=2e-2)
    got.float().sum().backward()
    assert inputs[0].grad.dtype == torch.float32


@pytest.mark.parametrize("case", ("dropout", "cached keys", "long", "additive mask"))
def test_the_rest_is_torch_s_own(case, monkeypatch):
    inputs = tensors(2, 4, 2, 5, 9 if case == "cached keys" else 5)
    called = []
    monkeypatch.setattr(attention, "_attend", lambda *_: called.append(1))
    if case == "long":
        monkeypatch.setattr(attention, "_LONG", 10)
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64) if case == "additive mask" else None
    layer = Layer(case in ("cached keys", "long"))
    layer.num_key_value_groups = 2
    out, _ = attention.attention(layer, *inputs, mask, dropout=0.5 * (case == "dropout"))
    assert not called and out.shape == (2, 5, 4, 8)


@pytest.mark.parametrize("kind", ("llama", "bert"))
def test_a_model_computes_as_with_torch_s(kind, tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=50, **shape)).save_pretrained(tmp_path)
    model = load_encoder(str(tmp_path)).eval()
    tokens, mask = torch.randint(0, 50, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    got = model(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(got, model(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()])


def test_a_model_that_torch_s_cannot_serve_is_left_alone():
    class Stubborn:
        chosen = "eager"

        def set_attn_implementation(self, name):
            raise ValueError(name)

    attention.use(model := Stubborn())
    assert model.chosen == "eager"
