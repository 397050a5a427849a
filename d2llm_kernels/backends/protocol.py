"""What a backend is: the functions of each operation, and whether it can serve one for given tensors."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from d2llm_kernels.branch import Branch, InBatch
from d2llm_kernels.errors import BackendError

Operation = Literal["attn_pool", "iem_scores", "iem_pairs", "iem_topk", "in_batch_terms", "linear", "lora_linear"]


class Pooling(Protocol):
    """``functional.attn_pool``, forward and backward."""

    def attn_pool(
        self, x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

    def attn_pool_backward(
        self,
        dpooled: Tensor,
        dlse: Tensor | None,
        x: Tensor,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and u, each empty, (0,), unless it is wanted; dx is 0 at masked tokens."""


class Interaction(Protocol):
    """``functional.iem_scores``, ``iem_pairs`` on rows and ``iem_topk``; ``task`` where branches are stacked.

    The backward gives gradients of a, b and the four tensors of the branch, in that order; ``wanted`` says whether for
    a and b, and for the branch. The others are empty, (0,).
    """

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor: ...

    def iem_scores_backward(
        self, dz: Tensor, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, wanted: Sequence[bool]
    ) -> tuple[Tensor, ...]: ...

    def iem_pairs(
        self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
    ) -> tuple[Tensor, Tensor]:
        """z (N,) and the features (N, F), or (0, F) without them."""

    def iem_pairs_backward(
        self,
        dz: Tensor,
        dfeatures: Tensor | None,
        a: Tensor,
        b: Tensor,
        branch: Branch,
        task: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]: ...

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]: ...


class OneBranch(Protocol):
    """``Interaction`` of kernels that know one branch at a time; ``tasks.PerTask`` makes the other of it."""

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch) -> Tensor: ...

    def iem_scores_backward(
        self, dz: Tensor, a: Tensor, b: Tensor, branch: Branch, wanted: Sequence[bool]
    ) -> tuple[Tensor, ...]: ...

    def iem_pairs(self, a: Tensor, b: Tensor, branch: Branch, return_features: bool) -> tuple[Tensor, Tensor]: ...

    def iem_pairs_backward(
        self,
        dz: Tensor,
        dfeatures: Tensor | None,
        a: Tensor,
        b: Tensor,
        branch: Branch,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]: ...

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, k: int) -> tuple[Tensor, Tensor]: ...


class InBatchTerms(Protocol):
    """``functional.in_batch_terms``."""

    def in_batch_terms(self, batch: InBatch) -> tuple[Tensor, Tensor]: ...

    def in_batch_terms_backward(
        self, dcross_entropy: Tensor | None, dpairwise: Tensor | None, batch: InBatch
    ) -> tuple[Tensor, Tensor]:
        """Gradients of z_in_batch and z_hard; None stands for a gradient of 0."""


class Linear(Protocol):
    """``functional.linear`` on groups of rows: x (G, N, K), weight (G, M, K), bias (G, M) or None."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


class Lora(Protocol):
    """``functional.lora_linear`` on rows, x and dropped (T, K), all of one dtype."""

    def lora_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropped: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y (T, N) and the adapter's inner values (T, R)."""

    def lora_linear_backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        inner: Tensor,
        scaling: float,
        dropped: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, weight, a, b and dropped, each empty, (0,), unless it is wanted."""


class Int8(Protocol):
    """What multiplies whole numbers, or serves such searches."""

    def iem_scores_int8(self, a: Tensor, b: Tensor, scale: Tensor, branch: Branch) -> Tensor:
        """Scores of passages in whole numbers, all other tensors float32; see ``rough.int8``."""

    def pack_linear_int8(self, weight: Tensor) -> Tensor:
        """A weight (M, K) int8 as ``linear_int8`` reads it, in int32."""

    def linear_int8(self, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """(N, K) float32 to (N, M) by a packed weight; see ``rough.linear``."""

    def inner_topk(
        self, queries: Tensor, chunks: Sequence[Tensor], kept: Tensor | None, k: int
    ) -> tuple[Tensor, Tensor]:
        """See ``rough.inner.topk``; k at most the number of rows that count."""

    def take_rows(self, chunks: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Rows (n, W), of any dtype, of chunks that count on from one to the next."""


class Search(Protocol):
    """A branch made ready once; see ``rough.search``."""

    def topk(
        self, a: Tensor, b: Tensor, scale: Tensor | None, k: int, values: Tensor, indices: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """The best k of what was found so far, (Nq, at most k), and the passages b, which count from ``first``.

        Results as in ``iem_topk``, fewer than k columns where there are no more; by rough scores where ``scale``
        belongs to passages in int8.
        """

    def pairs(self, a: Tensor, query: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
        """Scores (C,) of each passage of b (C, F) with the row of a (S, F) that ``query`` (C,) int64 names."""


class Formulas(Protocol):
    """Every operation forward, in functions that autograd differentiates itself: no operator stands between."""

    def attn_pool(
        self, x: Tensor, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

    def iem_scores(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None) -> Tensor: ...

    def iem_pairs(
        self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, return_features: bool
    ) -> tuple[Tensor, Tensor]: ...

    def iem_topk(self, a: Tensor, b: Tensor, branch: Branch, task: Tensor | None, k: int) -> tuple[Tensor, Tensor]: ...

    def in_batch_terms(self, batch: InBatch) -> tuple[Tensor, Tensor]: ...

    def lora_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dropped: Tensor | None,
    ) -> Tensor: ...


class Backend(Protocol):
    """One way to compute the operations. Kernels are loaded when their functions are asked for, not before."""

    name: str
    #: Whether it has kernels of its own.
    kernels: bool = True

    def missing(self) -> str | None:
        """Why it cannot be used in this process, or None when it can."""
        return None

    def unsupported(self, operation: Operation, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot serve an operation for tensors of this device and (promoted) dtype, or None when it can.

        A device without an index stands for the current one of its type. Asked only where nothing is ``missing``.
        """
        return None

    def formulas(self) -> Formulas | None:
        """Functions that autograd differentiates itself; None where the operators do the work."""
        return None

    def pooling(self) -> Pooling:
        """The functions of ``attn_pool``."""
        raise self._without("attn_pool")

    def interaction(self) -> Interaction:
        """The functions of ``iem_scores``, ``iem_pairs`` and ``iem_topk``."""
        raise self._without("iem_scores, iem_pairs, iem_topk")

    def in_batch(self) -> InBatchTerms:
        """The functions of ``in_batch_terms``."""
        raise self._without("in_batch_terms")

    def linear(self) -> Linear | None:
        """A matrix product of its own; None where torch's serves best."""
        return None

    def lora(self) -> Lora:
        """The functions of ``lora_linear``."""
        raise self._without("lora_linear")

    def int8(self) -> Int8 | None:
        """Kernels that multiply whole numbers; None where there are none."""
        return None

    def search(self, branch: Branch, dtype: torch.dtype) -> Search | None:
        """The branch made ready for passages of a dtype; None where a call of ``iem_topk`` does as well.

        For ``torch.int8`` None means that there are no kernels that multiply whole numbers.
        """
        return None

    def _without(self, operations: str) -> BackendError:
        return BackendError(f"backend={self.name!r}: there are no kernels of it for {operations}")


def type_name(dtype: torch.dtype) -> str:
    """The name of a dtype, for messages."""
    return str(dtype).removeprefix("torch.")
