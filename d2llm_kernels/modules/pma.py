"""Pooling by multi-head attention (PMA), with keys and values folded away (arXiv 2406.17262, section 3.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm_kernels import functional, reference
from d2llm_kernels.backends import requested
from d2llm_kernels.errors import require, shape
from d2llm_kernels.operators.pooling import check_tokens

RESIDUALS = ("seed", "projected")
INITS = ("warm", "xavier")

# Small enough for uniform attention and for a residual that leaves the mean alone. Not zero: a seed of zero gives
# fc_q and fc_k no gradient, and relu(0) has none, so that an fc_o of zero would stay so for ever.
_NEAR_ZERO = 0.01


class MAB(nn.Module):
    """Parameters of the attention block, under the names that published checkpoints use."""

    def __init__(self, dim: int, out_dim: int, ln: bool) -> None:
        super().__init__()
        self.fc_q = nn.Linear(out_dim, out_dim)
        self.fc_k = nn.Linear(dim, out_dim)
        self.fc_v = nn.Linear(dim, out_dim)
        self.fc_o = nn.Linear(out_dim, out_dim)
        self.ln0: nn.LayerNorm | None = nn.LayerNorm(out_dim) if ln else None
        self.ln1: nn.LayerNorm | None = nn.LayerNorm(out_dim) if ln else None


class PMA(nn.Module):
    """Pools the hidden states of a text into M vectors by attention from M learned seeds.

    Args:
        dim: width D of the hidden states.
        num_heads: heads H; must divide the output width.
        num_seeds: seeds M.
        ln: layer norms after the attention and after fc_o.
        residual: "seed" adds the seed itself (D2LLM), "projected" adds fc_q(seed) (Set Transformer, C2LLM).
        backend: one of ``backends.NAMES``; "auto" follows D2LLM_KERNELS_BACKEND, else the fastest present.
        out_dim: output width E, by default D. A smaller one compresses: fc_k and fc_v map D to E, and the
            seed, fc_q, fc_o and the layer norms have width E (CodeFuse-CGE).
        normalize: scale each output vector to length 1.
        init: "warm" starts as mean pooling, "xavier" as in the paper; see ``reset_parameters``.

    Raises:
        ArgumentError: on options that do not fit each other.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_seeds: int = 1,
        ln: bool = True,
        residual: str = "seed",
        backend: str = "auto",
        out_dim: int | None = None,
        normalize: bool = False,
        init: str = "warm",
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        require(dim > 0, "dim", "a positive width", dim)
        require(num_seeds > 0, "num_seeds", "at least 1", num_seeds)
        require(residual in RESIDUALS, "residual", f"one of {RESIDUALS}", repr(residual))
        require(out_dim > 0, "out_dim", "a positive width", out_dim)
        require(num_heads > 0 and out_dim % num_heads == 0, "num_heads", f"a divisor of {out_dim}", num_heads)
        self.dim, self.out_dim, self.num_heads, self.num_seeds = dim, out_dim, num_heads, num_seeds
        self.residual, self.backend, self.normalize = residual, backend, normalize
        self.S = nn.Parameter(torch.empty(1, num_seeds, out_dim))
        self.mab = MAB(dim, out_dim, ln)
        # The softmax ignores what is equal for all tokens, so this bias has no effect and no gradient; frozen, it does
        # not keep data-parallel training waiting for one.
        self.mab.fc_k.bias.requires_grad_(False)
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(self, init: str = "warm") -> None:
        """Draw the parameters anew.

        "xavier": xavier-uniform weights and seed, torch's own biases. "warm": fc_v = I (semi-orthogonal when
        compressing), seed and fc_o near 0, no biases, so that the output is the layer-normed mean of the valid tokens.

        Raises:
            ArgumentError: if ``init`` is neither.
        """
        require(init in INITS, "init", f"one of {INITS}", repr(init))
        layers = (self.mab.fc_q, self.mab.fc_k, self.mab.fc_v, self.mab.fc_o)
        for layer in layers:
            layer.reset_parameters()
            nn.init.xavier_uniform_(layer.weight)
        for norm in (self.mab.ln0, self.mab.ln1):
            if norm is not None:
                norm.reset_parameters()
        nn.init.xavier_uniform_(self.S)
        if init == "warm":
            for layer in layers:
                nn.init.zeros_(layer.bias)
            nn.init.normal_(self.S, std=_NEAR_ZERO)
            self.mab.fc_o.weight.mul_(_NEAR_ZERO)
            initialise = nn.init.eye_ if self.out_dim == self.dim else nn.init.orthogonal_
            initialise(self.mab.fc_v.weight)

    def folded_queries(self) -> Tensor:
        """u (M * H, D): fc_k's weight absorbed into the projected seeds, 1/sqrt(E) included.

        fc_k's bias adds the same to every token's score and drops out of the softmax.
        """
        return self._folded(self._projected_seeds())

    def _folded(self, seeds: Tensor) -> Tensor:
        heads = seeds.unflatten(-1, (self.num_heads, -1))
        keys = self.mab.fc_k.weight.unflatten(0, (self.num_heads, -1))
        return torch.einsum("mhe,hed->mhd", heads, keys).flatten(0, 1) / math.sqrt(self.out_dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        u: Tensor | None = None,
    ) -> Tensor:
        """Pool a padded or a packed batch.

        Args:
            x: (B, L, D), or (T, D) with ``cu_seqlens``; any floating dtype.
            mask: (B, L) bool or int, nonzero for a valid token, or None.
            cu_seqlens: (B + 1,) int32 or int64 offsets from 0 to T.
            u: what ``folded_queries`` returned, for batch after batch with the same parameters: it reads two (E, E)
                weights, in a large model half as many bytes as a batch. The module itself keeps none, since nothing
                tells it of every change of a parameter. The literal form does without.

        Returns:
            (B, E), or (B, M, E) with more than one seed, in the promoted dtype of x and the parameters. A text
            without a valid token gets what an attention of 0 gives: the residual alone goes through the norms.

        Raises:
            ArgumentError: on shapes, dtypes or offsets that do not fit.
            BackendError: if a backend named explicitly is missing.
        """
        check_tokens(x, self.dim, mask, cu_seqlens)
        if u is not None:
            expected = (self.num_seeds * self.num_heads, self.dim)
            require(u.shape == expected, "u", f"shape {expected}", shape(u))
        if requested(self.backend) == "reference":
            y = self._literal(x, mask, cu_seqlens)
        else:
            projected = self.residual == "projected"
            seeds = self._projected_seeds() if projected or u is None else self.S
            u = self._folded(seeds) if u is None else u
            pooled, lse = functional.attn_pool(x, u, mask, cu_seqlens, self.backend)
            # Only a mask or offsets can leave a text without tokens.
            empty = mask is not None or cu_seqlens is not None or x.shape[1] == 0
            y = self._head(pooled, seeds if projected else self.S, lse if empty else None)
        y = F.normalize(y, dim=-1) if self.normalize else y
        return y.squeeze(1) if self.num_seeds == 1 else y

    def attend(
        self, x: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The attention alone, arguments as of ``forward``: for a text whose tokens come in several lots.

        Returns:
            pooled (B, M * H, D) and lse (B, M * H), as of ``functional.attn_pool``. Lots are put together as means
            weighted by exp(lse); ``outputs`` makes of that what ``forward`` makes of all tokens.

        Raises:
            ArgumentError, BackendError: as ``forward``.
        """
        check_tokens(x, self.dim, mask, cu_seqlens)
        return functional.attn_pool(x, self.folded_queries() if u is None else u, mask, cu_seqlens, self.backend)

    def outputs(self, pooled: Tensor) -> Tensor:
        """What ``forward`` makes of pooled tokens (B, M * H, D), of texts that have some: (B, E), or (B, M, E)."""
        y = self._head(pooled, self._projected_seeds() if self.residual == "projected" else self.S, None)
        y = F.normalize(y, dim=-1) if self.normalize else y
        return y.squeeze(1) if self.num_seeds == 1 else y

    def extra_repr(self) -> str:
        """The options that set this module apart."""
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, num_seeds={self.num_seeds}, out_dim={self.out_dim}, "
            f"residual={self.residual!r}, normalize={self.normalize}, backend={self.backend!r}"
        )

    def _projected_seeds(self) -> Tensor:
        return self.mab.fc_q(self.S.flatten(0, 1))

    def _head(self, pooled: Tensor, base: Tensor, lse: Tensor | None) -> Tensor:
        """From pooled tokens (B, M * H, D) to outputs (B, M, E): values, residual, layer norms, fc_o.

        Args:
            base: what the residual adds, (M, E) or (1, M, E).
            lse: (B, M * H) where a text may be without tokens.
        """
        weight, bias = self.mab.fc_v.weight, self.mab.fc_v.bias
        pooled = pooled.to(torch.promote_types(pooled.dtype, weight.dtype))
        by_head = pooled.reshape(-1, self.num_heads, self.dim).transpose(0, 1)
        values = functional.linear(by_head, weight.unflatten(0, (self.num_heads, -1)), backend=self.backend)
        values = values.transpose(0, 1).unflatten(0, (-1, self.num_seeds))
        # The attention of a text without valid tokens is 0, so the bias of the values is not added there. Without such
        # texts all get the same, bit for bit what each gets otherwise.
        filled = None if lse is None else (lse[:, :1, None] > -math.inf).to(values.dtype)
        offset = base + bias if filled is None else torch.addcmul(base, filled, bias)
        # First what lies as the sum is to lie: the values' heads are then put in order on the way.
        out = (offset.unflatten(-1, (self.num_heads, -1)) + values).flatten(-2)
        out = out if self.mab.ln0 is None else self.mab.ln0(out)
        out = out + torch.relu(functional.linear(out, *_affine(self.mab.fc_o), self.backend))
        return out if self.mab.ln1 is None else self.mab.ln1(out)

    def _literal(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        mab = self.mab
        return reference.pma(
            x.to(torch.promote_types(x.dtype, self.S.dtype)),
            self.S,
            fc_q=_affine(mab.fc_q),
            fc_k=_affine(mab.fc_k),
            fc_v=_affine(mab.fc_v),
            fc_o=_affine(mab.fc_o),
            num_heads=self.num_heads,
            ln0=None if mab.ln0 is None else (*_affine(mab.ln0), mab.ln0.eps),
            ln1=None if mab.ln1 is None else (*_affine(mab.ln1), mab.ln1.eps),
            mask=mask,
            cu_seqlens=cu_seqlens,
            residual=self.residual,
        )


def _affine(layer: nn.Linear | nn.LayerNorm) -> reference.Affine:
    return layer.weight, layer.bias
