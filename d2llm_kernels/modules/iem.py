"""Interaction emulation (IEM): a small MLP on a query and a passage vector (arXiv 2406.17262, section 3.3)."""

import math

import torch
from torch import Tensor, nn

from d2llm_kernels import functional, reference
from d2llm_kernels.backends import requested
from d2llm_kernels.backends.tasks import per_task
from d2llm_kernels.branch import Branch
from d2llm_kernels.errors import require, shape
from d2llm_kernels.modules.pma import INITS
from d2llm_kernels.modules.warm_start import frame, length_ratio
from d2llm_kernels.operators.interaction import check_task
from d2llm_kernels.rough import int8
from d2llm_kernels.rough.search import Search

# Logits per unit of |q - p| / input_norm at the warm start. Vectors at right angles are sqrt(2) apart, so scores
# run from +10 (equal) over 0 (60 degrees) to -4 (90 degrees): steep enough to rank, flat enough to learn.
WARM_SLOPE = 10.0


class IEM(nn.Module):
    """Order-sensitive score of a (query, passage) pair, one branch per task with a shared last layer.

    Computes x = relu(linear1([q; p])), x_t = relu(proj_t(x)), z_t = linear2(x_t).

    Args:
        dim: width D of the vectors.
        hidden: width F; at least 2 for the warm start.
        num_tasks: branches; 0 is symmetric, 1 asymmetric.
        backend: one of ``backends.NAMES``; "auto" follows D2LLM_KERNELS_BACKEND, else the fastest present.
        init: "warm" starts as a distance, "xavier" as in the paper; see ``reset_parameters``.

    Raises:
        ArgumentError: on options that do not fit each other.
    """

    def __init__(
        self, dim: int, hidden: int = 512, num_tasks: int = 2, backend: str = "auto", init: str = "warm"
    ) -> None:
        super().__init__()
        require(dim > 0, "dim", "a positive width", dim)
        require(hidden > 0, "hidden", "a positive width", hidden)
        require(num_tasks > 0, "num_tasks", "at least 1", num_tasks)
        self.dim, self.hidden, self.num_tasks, self.backend = dim, hidden, num_tasks, backend
        self.linear1 = nn.Linear(2 * dim, hidden)
        for task in range(num_tasks):
            self.add_module(f"proj{task}", nn.Linear(hidden, hidden))
        self.linear2 = nn.Linear(hidden, 1)
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(
        self, init: str = "warm", input_norm: float | None = None, sample: Tensor | None = None
    ) -> None:
        """Draw the parameters anew.

        "xavier": xavier-uniform weights, torch's own biases. "warm": linear1 = [R, -R] with R (F, D) a frame of
        columns that are orthogonal and sum to zero, proj_t = I and a constant linear2, so that x sums to a multiple of
        |q - p| and z is about 10 (1 - |q - p| / input_norm) before any training.

        Args:
            init: "warm" or "xavier".
            input_norm: typical length of the vectors; by default sqrt(D), which layer-normed ones have. Pass 1.0
                for vectors scaled to length 1.
            sample: (N, D) float vectors such as will be compared, N at least 2 and better above F: where D
                is F or more, R then keeps the first F - 1 principal directions, in place of random ones.

        Raises:
            ArgumentError: if ``init`` is neither, ``hidden`` is 1 with "warm", or the sample does not fit.
        """
        require(init in INITS, "init", f"one of {INITS}", repr(init))
        require(init == "xavier" or self.hidden > 1, "hidden", "at least 2 for init='warm'", self.hidden)
        for linear in (self.linear1, self.linear2, *map(self._projection, range(self.num_tasks))):
            linear.reset_parameters()
            nn.init.xavier_uniform_(linear.weight)
            if init == "warm":
                nn.init.zeros_(linear.bias)
        if init == "warm":
            r = frame(self.hidden, self.dim, sample)
            self.linear1.weight.copy_(torch.cat([r, -r], 1))
            for task in range(self.num_tasks):
                nn.init.eye_(self._projection(task).weight)
            norm = math.sqrt(self.dim) if input_norm is None else input_norm
            per_unit = norm * length_ratio(r, sample)
            nn.init.constant_(self.linear2.weight, -WARM_SLOPE / per_unit)
            nn.init.constant_(self.linear2.bias, WARM_SLOPE)

    def project_queries(self, q: Tensor) -> Tensor:
        """linear1's query half with its bias: (..., D) -> a (..., F)."""
        self._check_vectors("q", q)
        weight = self.linear1.weight[:, : self.dim]
        q = q.to(torch.promote_types(q.dtype, weight.dtype))
        return functional.linear(q, weight, self.linear1.bias, self.backend)

    def project_passages(self, p: Tensor) -> Tensor:
        """linear1's passage half: (..., D) -> b (..., F), all that an index has to keep of a passage."""
        self._check_vectors("p", p)
        weight = self.linear1.weight[:, self.dim :]
        return functional.linear(p.to(torch.promote_types(p.dtype, weight.dtype)), weight, backend=self.backend)

    def forward(
        self, q: Tensor, p: Tensor, task: int | Tensor, return_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Score given pairs.

        Args:
            q, p: (..., D), broadcast against each other.
            task: branch number, or an integer tensor that broadcasts to (...), one number per pair.
            return_features: also return x_t.

        Returns:
            z (...), and with ``return_features`` the features (..., F).

        Raises:
            ArgumentError: on shapes that do not fit or a task that has no branch.
        """
        self._check_vectors("q", q)
        self._check_vectors("p", p)
        task = self._check_task(task)
        if requested(self.backend) == "reference":
            z, features = self._literal(q, p, task)
            return (z, features) if return_features else z
        a, b = self.project_queries(q), self.project_passages(p)
        branch, rows = self._branches(task)
        return functional.iem_pairs(a, b, *branch, return_features, self.backend, rows)

    def score_all(self, q: Tensor, p: Tensor, task: int | Tensor) -> Tensor:
        """Score every query with every passage: (Nq, D), (Np, D) -> (Nq, Np), no pair tensor in between.

        Args:
            task: branch number, or (Nq,) integers, one per query.

        Raises:
            ArgumentError: on shapes that do not fit or a task that has no branch.
        """
        self._check_vectors("q", q, rank=2)
        self._check_vectors("p", p, rank=2)
        task = self._check_task(task)
        if requested(self.backend) == "reference":
            q, p = self._widened(q, p)
            return reference.score_all(q, p, self._literal_task(task, q.shape[:1], q.device), *self._layers())
        branch, rows = self._branches(task)
        return functional.iem_scores(self.project_queries(q), self.project_passages(p), *branch, self.backend, rows)

    def topk(
        self, a: Tensor, b: Tensor, k: int, task: int | Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k best passages of each query among projected ones, exact and streaming.

        Args:
            a: (Nq, F) from ``project_queries``. b: (Np, F) from ``project_passages``.
            k: how many, between 1 and Np.
            task: branch number, or (Nq,) integers, one per query.
            scale: (Np,) float32 where b is int8, both from ``int8.quantize``; candidates are chosen as told there.

        Returns:
            values and int64 indices, both (Nq, k), best first, the lower index first among equals.

        Raises:
            ArgumentError: on shapes that do not fit, k outside 1..Np or a task that has no branch.
        """
        task = self._check_task(task)
        if scale is None:
            branch, rows = self._branches(task)
            return functional.iem_topk(a, b, *branch, k, self.backend, rows)

        def run(rows: Tensor, branch: Branch) -> tuple[Tensor, ...]:
            return int8.iem_topk(rows, b, scale, *branch, k, self.backend)

        branch, rows = self._branches(task)
        rows = None if rows is None else check_task(rows, a.shape[:1], self.num_tasks, a.device)
        values, indices = per_task(rows, branch, run, a)
        return values, indices

    def prepare(self, task: int, dtype: torch.dtype) -> Search:
        """The branch of a task, packed or rounded once, to search chunk after chunk of passages with.

        Args:
            task: branch number.
            dtype: in which the passages of ``project_passages`` are stored: floating, or ``torch.int8`` as
                ``int8.Int8Rows``.

        Raises:
            ArgumentError: on a task that has no branch, or another dtype.
            BackendError: if the module's backend was named and is missing or takes no such tensors.
        """
        known = isinstance(task, int) and not isinstance(task, bool) and 0 <= task < self.num_tasks
        require(known, "task", f"an int in 0..{self.num_tasks - 1}", repr(task))
        return Search(self._branch(task), dtype, self.backend)

    def extra_repr(self) -> str:
        """The options that set this module apart."""
        return f"dim={self.dim}, hidden={self.hidden}, num_tasks={self.num_tasks}, backend={self.backend!r}"

    def _projection(self, task: int) -> nn.Linear:
        projection = self.get_submodule(f"proj{task}")
        assert isinstance(projection, nn.Linear)
        return projection

    def _branch(self, task: int) -> Branch:
        projection = self._projection(task)
        return Branch(projection.weight, projection.bias, self.linear2.weight, self.linear2.bias)

    def _branches(self, task: int | Tensor) -> tuple[Branch, Tensor | None]:
        """The branch of a task and None or, for a tensor of tasks, those of all as one and that tensor."""
        if isinstance(task, int):
            return self._branch(task), None
        branches = [self._branch(number) for number in range(self.num_tasks)]
        weight, bias = (_stacked([branch[part] for branch in branches]) for part in range(2))
        return Branch(weight, bias, self.linear2.weight, self.linear2.bias), task

    def _layers(self) -> tuple[reference.Affine, list[reference.Affine], reference.Affine]:
        layers = [self.linear1, *map(self._projection, range(self.num_tasks)), self.linear2]
        affine: list[reference.Affine] = [(layer.weight, layer.bias) for layer in layers]
        return affine[0], affine[1:-1], affine[-1]

    def _widened(self, *vectors: Tensor) -> list[Tensor]:
        dtype = self.linear1.weight.dtype
        return [vector.to(torch.promote_types(vector.dtype, dtype)) for vector in vectors]

    def _literal(self, q: Tensor, p: Tensor, task: int | Tensor) -> tuple[Tensor, Tensor]:
        q, p = torch.broadcast_tensors(*self._widened(q, p))
        return reference.iem(q, p, self._literal_task(task, q.shape[:-1], q.device), *self._layers())

    def _literal_task(self, task: int | Tensor, rows: torch.Size, device: torch.device) -> int | Tensor:
        if isinstance(task, int):
            return task
        return check_task(task, rows, self.num_tasks, device).clamp(0, self.num_tasks - 1)

    def _check_vectors(self, name: str, vectors: Tensor, rank: int | None = None) -> None:
        require(vectors.is_floating_point(), name, "a floating point tensor", vectors.dtype)
        fits = vectors.dim() >= 1 and vectors.shape[-1] == self.dim and rank in (None, vectors.dim())
        require(fits, name, f"shape ({'...' if rank is None else 'N'}, {self.dim})", shape(vectors))

    def _check_task(self, task: int | Tensor) -> int | Tensor:
        """The task, if it is a tensor or the number of a branch."""
        if not isinstance(task, Tensor):
            known = isinstance(task, int) and not isinstance(task, bool) and 0 <= task < self.num_tasks
            require(known, "task", f"an int or integer tensor in 0..{self.num_tasks - 1}", repr(task))
        return task


def _stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors as one, a view where there is but one."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]
