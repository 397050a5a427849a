"""A whole encode and a whole training step of a random decoder with PMA and IEM, backend against backend."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import d2llm_kernels as dk
from d2llm_kernels.measure.timing import Timer


class Size(NamedTuple):
    """Decoder and batches: ``texts`` of ``length`` tokens to encode; ``pairs`` of query and passages to train on."""

    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    hidden: int
    texts: int
    length: int
    pairs: int
    negatives: int
    dtype: torch.dtype


# A decoder of about a billion weights.
FULL = Size(2048, 8192, 16, 16, 32000, 512, 64, 256, 32, 1, torch.bfloat16)
SMOKE = Size(16, 16, 1, 2, 64, 16, 2, 6, 2, 1, torch.float32)
BACKENDS = ("reference", "folded", "triton")


class Student(nn.Module):
    """Random decoder, PMA and IEM."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=max(1, size.heads // 4),
            use_cache=False,
        )
        self.decoder = LlamaModel(config)
        self.pma = dk.PMA(size.width, size.heads)
        self.iem = dk.IEM(size.width, size.hidden)

    def use(self, backend: str) -> None:
        """Choose the backend of both heads."""
        self.pma.backend = self.iem.backend = backend

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""
        return self.pma(self.decoder(input_ids=tokens, attention_mask=mask).last_hidden_state, mask)

    def loss(self, queries: tuple[Tensor, Tensor], passages: tuple[Tensor, Tensor], group: int) -> Tensor:
        """Contrastive losses over own negatives and in the batch; passages come in groups, the positive first."""
        q, p = self.embed(*queries), self.embed(*passages)
        own = p.view(len(q), group, -1)
        z = self.iem(q[:, None].expand_as(own), own, 1)
        in_batch = self.iem.score_all(q, own[:, 0], 1)
        first = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        return F.cross_entropy(z.float(), first) + F.cross_entropy(
            in_batch.float(), torch.arange(len(q), device=q.device)
        )


def measure(timer: Timer, size: Size) -> list[dict[str, Any]]:
    """Rows of tokens per second, peak memory and ratio to the literal heads, for encoding and for training."""
    with timer.device:
        student = Student(size).to(size.dtype)
        texts = _texts(size.texts, size.length, size.vocabulary)
        queries = _texts(size.pairs, max(1, size.length // 8), size.vocabulary)
        group = 1 + size.negatives
        passages = _texts(size.pairs * group, size.length // 2, size.vocabulary)
    weights = sum(parameter.numel() for parameter in student.parameters())
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, foreach=True)

    def encode() -> None:
        with torch.inference_mode():
            student.embed(*texts)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        student.loss(queries, passages, group).backward()
        optimizer.step()

    rows = []
    batches = {"encode": (encode, [texts]), "training step": (train, [queries, passages])}
    for name, (call, inputs) in batches.items():
        tokens = sum(int(mask.sum()) for _, mask in inputs)
        row: dict[str, Any] = {"operation": name, "weights": weights, "tokens": tokens, "variants": {}}
        row |= {key: str(value) for key, value in size._asdict().items()}
        for backend in BACKENDS:
            student.use(backend)
            try:
                sample = timer.sample(call)
                row["variants"][backend] = {
                    "median_s": sample.median_s,
                    "spread": sample.spread,
                    "runs": sample.runs,
                    "tokens_per_s": tokens / sample.median_s,
                    "peak_bytes": sample.peak_bytes,
                }
            except Exception as error:
                # One backend that fails must not take the others' figures with it.
                row["variants"][backend] = {"failure": f"{type(error).__name__}: {error}"[:300]}
            timer.free()
        base = row["variants"][BACKENDS[0]].get("median_s")
        for found in row["variants"].values():
            if base and "median_s" in found:
                found["ratio"] = base / found["median_s"]
        rows.append(row)
    return rows


def _texts(count: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Random tokens, right-padded to ragged lengths of at least half, and their mask."""
    lengths = torch.randint(max(1, length // 2), length + 1, (count, 1))
    return torch.randint(vocabulary, (count, length)), (torch.arange(length) < lengths).long()
