"""Other scorers over as many passages: the cosine by faiss, late interaction, a small network made for each query."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_K = 10
# Of late interaction: tokens of a query and of a passage, the width of a token's vector.
_QUERY_TOKENS, _TOKENS, _TOKEN_WIDTH = 32, 71, 128
# Passages that late interaction holds in memory, and rows that a query's network is applied to.
_FEW = 10_000
# Lists of the inverted file, those that are searched, passages that it is trained on, passages added at a time.
_LISTS, _PROBED, _TRAINED, _BLOCK = 1024, 32, 50_000, 1 << 14
# Hidden layers of a query's network: the fewest of those published with arXiv 2502.05364.
_LAYERS = 2

Search = Callable[[np.ndarray], np.ndarray]


class Peer(NamedTuple):
    """A way to rank passages.

    Args:
        name: what it is. bytes: what it stores of a passage.
        open: makes the search over vectors (N, D): of queries (Nq, D) -> the best passages of each, (Nq, k).
        scale: how many times more passages there are than it searches; its times are to be multiplied by that.
        slow: whether a query takes seconds.
    """

    name: str
    bytes: int
    open: Callable[[np.ndarray], Search]
    scale: float = 1
    slow: bool = False


def peers(width: int, threads: int, passages: int) -> list[Peer]:
    """All of them, for vectors of a width."""
    few = max(1.0, passages / _FEW)
    maxsim = f"MaxSim (maxsim-cpu), {_QUERY_TOKENS} x {_TOKENS} tokens of {_TOKEN_WIDTH}"
    network = f"a network of {_LAYERS} hidden layers a query (Hypencoder's form), float32"
    return [
        Peer("cosine, faiss flat, float32", 4 * width, lambda vectors: _flat(vectors, threads)),
        Peer(f"cosine, faiss IVF{_LISTS}, {_PROBED} lists", 4 * width, lambda vectors: _inverted(vectors, threads)),
        Peer(maxsim, 4 * _TOKENS * _TOKEN_WIDTH, _late_interaction, few, slow=True),
        Peer(network, 4 * width, _networks, few, slow=True),
    ]


def _flat(vectors: np.ndarray, threads: int) -> Search:
    import faiss

    return _filled(faiss.IndexFlatIP(vectors.shape[1]), vectors, threads)


def _inverted(vectors: np.ndarray, threads: int) -> Search:
    import faiss

    width = vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, _LISTS, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(threads)
    index.train(_unit(vectors[:: max(1, len(vectors) // _TRAINED)]))
    index.nprobe = _PROBED
    return _filled(index, vectors, threads)


def _filled(index: object, vectors: np.ndarray, threads: int) -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    for start in range(0, len(vectors), _BLOCK):
        index.add(_unit(vectors[start : start + _BLOCK]))
    return lambda queries: index.search(_unit(queries), _K)[1]


def _late_interaction(vectors: np.ndarray) -> Search:
    """Over tokens drawn at random: what they are does not change the time."""
    import maxsim_cpu

    draw, few = np.random.default_rng(0), min(_FEW, len(vectors))
    query = _unit(draw.standard_normal((_QUERY_TOKENS, _TOKEN_WIDTH), np.float32))
    passages = _unit(draw.standard_normal((few, _TOKENS, _TOKEN_WIDTH), np.float32))
    some = passages[:50]
    expected = np.einsum("qd,ntd->nqt", query, some).max(2).sum(1)
    np.testing.assert_allclose(maxsim_cpu.maxsim_scores(query, some), expected, rtol=1e-4)
    return lambda queries: np.argpartition(-maxsim_cpu.maxsim_scores(query, passages), _K)[None, :_K]


def _networks(vectors: np.ndarray) -> Search:
    """Over weights drawn at random: what they are does not change the time."""
    draw, width = torch.Generator().manual_seed(0), vectors.shape[1]
    rows = torch.from_numpy(vectors[:_FEW].copy())
    layers = [torch.randn(width, width, generator=draw) / width**0.5 for _ in range(_LAYERS)]
    last = torch.randn(width, generator=draw)

    def scores(passages: Tensor) -> Tensor:
        for layer in layers:
            passages = torch.relu(passages @ layer.T)
        return passages @ last

    @torch.inference_mode()
    def search(queries: np.ndarray) -> np.ndarray:
        # Blocks that stay in a core's cache.
        return torch.cat([scores(some) for some in rows.split(1024)]).topk(_K).indices[None].numpy()

    return search


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
