"""Putting this package's PMA, IEM and LoRA in the place of a model's own, recognised by names and shapes."""

import re

import torch
from torch import nn

from d2llm_kernels.errors import require
from d2llm_kernels.modules import lora
from d2llm_kernels.modules.iem import IEM
from d2llm_kernels.modules.pma import PMA

_PMA_LINEARS = ("fc_q", "fc_k", "fc_v", "fc_o")


def accelerate(model: nn.Module, residual: str = "seed", backend: str = "auto") -> nn.Module:
    """Swap every PMA, IEM and LoRA layer of a model for this package's, in place; parameters are shared, not copied.

    A PMA is a module with a parameter ``S`` (1, M, E) and a child ``mab`` with linear layers ``fc_q, fc_k, fc_v,
    fc_o`` (and perhaps ``ln0, ln1``), and an attribute ``num_heads`` on either. An IEM has linear layers
    ``linear1`` (2D -> F), ``proj0, proj1, ...`` (F -> F) and ``linear2`` (F -> 1). Afterwards they are called as
    ``PMA`` and ``IEM`` are. A LoRA layer is one of peft's over a plain linear layer. It stays the object and of the
    class that it was, with the same state dict, merging and all, and computes by ``functional.lora_linear`` while one
    plain adapter is at work. Its factors are rounded to the dtype of its input; peft widens the input to theirs.

    Args:
        residual: what the model's PMA adds to its attention, "seed" or "projected"; names cannot tell.
        backend: backend of the new modules.

    Returns:
        ``model``, or the new module where ``model`` itself is a PMA or IEM.

    Raises:
        ArgumentError: if a PMA does not say its ``num_heads``.
    """
    replaced = _replacement(model, residual, backend)
    if replaced is not None:
        return replaced
    for name, child in model.named_children():
        setattr(model, name, accelerate(child, residual, backend))
    return model


def _replacement(module: nn.Module, residual: str, backend: str) -> nn.Module | None:
    if isinstance(module, (PMA, IEM)):
        return module
    if lora.is_lora(module):
        return lora.fuse(module, backend)
    new: nn.Module | None = None
    if _is_pma(module):
        new = _make_pma(module, residual, backend)
    elif _is_iem(module):
        new = _make_iem(module, backend)
    return None if new is None else new.train(module.training)


def _is_pma(module: nn.Module) -> bool:
    seed, mab = getattr(module, "S", None), getattr(module, "mab", None)
    if not isinstance(seed, nn.Parameter) or seed.dim() != 3 or seed.shape[0] != 1:
        return False
    layers = [getattr(mab, name, None) for name in _PMA_LINEARS]
    return all(isinstance(layer, nn.Linear) and layer.out_features == seed.shape[2] for layer in layers)


def _make_pma(module: nn.Module, residual: str, backend: str) -> PMA:
    mab = module.get_submodule("mab")
    seed, heads = module.get_parameter("S"), getattr(mab, "num_heads", getattr(module, "num_heads", None))
    require(isinstance(heads, int), "num_heads", "an int attribute of the PMA or its mab", repr(heads))
    norms = [getattr(mab, name, None) for name in ("ln0", "ln1")]
    with torch.device("meta"):
        new = PMA(
            mab.get_parameter("fc_k.weight").shape[1],
            int(heads or 0),
            num_seeds=seed.shape[1],
            ln=all(isinstance(norm, nn.LayerNorm) for norm in norms),
            residual=residual,
            backend=backend,
            out_dim=seed.shape[2],
            init="xavier",
        )
    new.S = seed
    for name, _ in list(new.mab.named_children()):
        setattr(new.mab, name, getattr(mab, name))
    return new


def _projections(module: nn.Module) -> list[str]:
    return sorted((n for n, _ in module.named_children() if re.fullmatch(r"proj\d+", n)), key=lambda n: int(n[4:]))


def _is_iem(module: nn.Module) -> bool:
    names = ["linear1", *_projections(module), "linear2"]
    layers = [getattr(module, name, None) for name in names]
    if len(layers) < 3 or not all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers):
        return False
    first, *middle, last = (layer.weight for layer in layers if isinstance(layer, nn.Linear))
    hidden = first.shape[0]
    contiguous = names[1:-1] == [f"proj{i}" for i in range(len(middle))]
    square = all(weight.shape == (hidden, hidden) for weight in middle)
    return contiguous and square and first.shape[1] % 2 == 0 and last.shape == (1, hidden)


def _make_iem(module: nn.Module, backend: str) -> IEM:
    names = ["linear1", *_projections(module), "linear2"]
    hidden, width = module.get_parameter("linear1.weight").shape
    with torch.device("meta"):
        new = IEM(width // 2, hidden, num_tasks=len(names) - 2, backend=backend, init="xavier")
    for name in names:
        setattr(new, name, getattr(module, name))
    return new
