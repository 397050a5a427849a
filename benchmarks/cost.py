"""What a query costs: an LLM that reads every pair, late interaction, the cosine, and the interaction module.

All compute in float32 on all threads; the module's other dtypes have rows of their own. A size that was not searched,
because it does not fit or would take hours, is scaled from the largest that was, and marked with ~.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import d2llm_kernels as dk
from benchmarks import corpus
from d2llm.shipped import BASE_MODEL, TEACHER
from d2llm.teacher.model import Teacher
from d2llm_kernels.measure.writing import duration

#: Passages that a query is held against.
SIZES = (1_000, 100_000, 1_000_000)
_K = 100
# Of late interaction, as its published models have them: tokens of a query, and the width of a token's vector.
_QUERY_TOKENS, _TOKEN_WIDTH = 32, 128
_PROMPTS = 24
_QUERIES = 20
_RUNS = 3


class System(NamedTuple):
    """A way to rank passages.

    Args:
        name, dtype: what it is.
        encode_s: time to encode a query. bytes: what is stored of a passage.
        search: makes the search over a number of passages, after checking its results.
        sizes: how many passages are searched at most; further ones are scaled.
    """

    name: str
    dtype: str
    encode_s: float
    bytes: float
    search: Callable[[int], Callable[[], object]]
    largest: int


def systems(full: bool) -> Iterator[System]:
    """What is compared; the largest corpora only for ``full``."""
    largest = SIZES[-1] if full else SIZES[1]
    student = corpus.student()
    texts = corpus.pairs()
    encode_s = _encode_time([pair.query for pair in texts[:_QUERIES]])
    yield _teacher()
    tokens = statistics.mean(
        len(ids) for ids in student.tokenizer([pair.positive for pair in texts[:500]])["input_ids"]
    )
    tokens = min(int(tokens), student.config.passage_length)
    yield System(
        f"MaxSim (maxsim-cpu), {_QUERY_TOKENS} x {tokens} tokens of {_TOKEN_WIDTH}",
        "float32",
        encode_s,
        4 * tokens * _TOKEN_WIDTH,
        lambda size: _maxsim(size, tokens),
        # A hundred thousand passages take gigabytes.
        SIZES[1] if full else SIZES[0] * 10,
    )
    yield System(f"cosine (faiss flat), D={student.dim}", "float32", encode_s, 4 * student.dim, _cosine, largest)
    hidden = student.iem.hidden
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        stored = size * hidden + (4 if dtype == "int8" else 0)
        yield System(
            f"IEM, F={hidden}", dtype, encode_s, stored, lambda count, dtype=dtype: _interaction(count, dtype), largest
        )


def measure(system: System) -> dict[str, Any]:
    """Times of a system at every size."""
    totals, scaled, per_passage = {}, [], 0.0
    for size in SIZES:
        if size <= system.largest or not totals:
            seconds = _best(system.search(min(size, system.largest))) * size / min(size, system.largest)
            per_passage = seconds / size
        else:
            seconds = per_passage * size
        if size > system.largest:
            scaled.append(size)
        totals[str(size)] = system.encode_s + seconds
    return {
        "system": system.name,
        "dtype": system.dtype,
        "encode_s": system.encode_s,
        "per_passage_s": per_passage,
        "bytes_per_passage": system.bytes,
        "totals_s": totals,
        "scaled": scaled,
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Head and lines, one a system."""
    head = ["system", "dtype", "encode", "interaction a passage", "bytes a passage"]
    lines = [[*head, *(f"{size:,} passages" for size in SIZES)]]
    for row in rows:
        totals = [("~" if size in row["scaled"] else "") + duration(row["totals_s"][str(size)]) for size in SIZES]
        per_passage = row["per_passage_s"]
        interaction = f"{per_passage * 1e9:.3g} ns" if per_passage < 1e-6 else duration(per_passage)
        encode = duration(row["encode_s"]) if row["encode_s"] else "-"
        stored = f"{row['bytes_per_passage']:,.0f}" if row["bytes_per_passage"] else "text"
        lines.append([row["system"], row["dtype"], encode, interaction, stored, *totals])
    return lines


def _best(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _encode_time(queries: Sequence[str]) -> float:
    """Median seconds to encode one query."""
    student = corpus.student()
    student.encode(queries[:1], kind="query")
    times = []
    for query in queries:
        start = time.perf_counter()
        student.encode([query], kind="query")
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _teacher() -> System:
    teacher = Teacher.from_pretrained(BASE_MODEL, TEACHER)
    pairs = corpus.pairs()[:_PROMPTS]

    def search(size: int) -> Callable[[], object]:
        queries, passages = [pair.query for pair in pairs[:size]], [pair.positive for pair in pairs[:size]]
        logits, _ = teacher.judge(queries, passages, pairs[0].task)
        assert logits.shape == (size, 2) and np.isfinite(logits).all()
        return lambda: teacher.judge(queries, passages, pairs[0].task)

    layers = teacher.decoder.config.num_hidden_layers
    return System(f"teacher LLM on every pair, {layers} layers", "float32", 0.0, 0, search, _PROMPTS)


def _maxsim(size: int, tokens: int) -> Callable[[], object]:
    import maxsim_cpu

    random = np.random.default_rng(0)
    query = _unit(random.standard_normal((_QUERY_TOKENS, _TOKEN_WIDTH), np.float32))
    passages = _unit(random.standard_normal((size, tokens, _TOKEN_WIDTH), np.float32))
    some = passages[:500]
    np.testing.assert_allclose(
        maxsim_cpu.maxsim_scores(query, some), np.einsum("qd,ntd->nqt", query, some).max(2).sum(1), rtol=1e-4
    )
    return lambda: np.argpartition(maxsim_cpu.maxsim_scores(query, passages), size - min(_K, size))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors


def _cosine(size: int) -> Callable[[], object]:
    import faiss

    random = np.random.default_rng(0)
    width = corpus.student().dim
    passages = _unit(random.standard_normal((size, width), np.float32))
    query = _unit(random.standard_normal((1, width), np.float32))
    index = faiss.IndexFlatIP(width)
    index.add(passages)
    expected = np.sort(passages @ query[0])[::-1][:_K]
    np.testing.assert_allclose(index.search(query, _K)[0][0], expected, rtol=1e-4, atol=1e-5)
    return lambda: index.search(query, _K)


def _interaction(size: int, dtype: str) -> Callable[[], object]:
    head = corpus.student().iem
    projected = head.project_passages(torch.randn(size, head.dim)).detach()
    query = head.project_queries(torch.randn(1, head.dim)).detach()
    scale = None
    if dtype == "int8":
        projected, scale = dk.int8.quantize(projected)
    elif dtype == "bfloat16":
        projected, query = projected.bfloat16(), query.bfloat16()
        head = _in_bfloat16(head)

    @torch.inference_mode()
    def run() -> tuple[Tensor, Tensor]:
        return head.topk(query, projected, _K, 1, scale)

    values, indices = run()
    rows = projected[indices[0]].float() * (1.0 if scale is None else scale[indices[0], None])
    exact = dk.IEM.topk(_literal(head), query.float(), rows, _K, 1)[0]
    # The best ones again by the literal formula on what is stored.
    torch.testing.assert_close(values.float(), exact, rtol=2e-2 if dtype == "bfloat16" else 1e-4, atol=1e-3)
    return run


def _in_bfloat16(head: dk.IEM) -> dk.IEM:
    return _copy(head, head.backend).bfloat16()


def _literal(head: dk.IEM) -> dk.IEM:
    return _copy(head, "reference").float()


def _copy(head: dk.IEM, backend: str) -> dk.IEM:
    made = dk.IEM(head.dim, head.hidden, head.num_tasks, backend).to(head.linear1.weight.dtype)
    made.load_state_dict(head.state_dict())
    return made.requires_grad_(False)
