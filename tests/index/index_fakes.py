"""A tiny encoder for the tests of the index: the sum of a text's word vectors, and a real head."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from d2llm_kernels import IEM

DIM, HIDDEN = 32, 16


def head(seed: int = 0) -> IEM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return IEM(DIM, hidden=HIDDEN, init="xavier").eval()


class WordEncoder:
    """Encodes deterministically; ``encoded`` lists every passage it was given, ``log`` keeps them on disk."""

    def __init__(self, seed: int = 0, log: Path | None = None) -> None:
        self.iem = head(seed)
        self.seed = seed
        self.encoded: list[str] = []
        self.log = log

    def fingerprint(self) -> str:
        return f"words-{self.seed}"

    def encode(self, texts: Sequence[str], *, kind: str, batch_size: int, show_progress: bool) -> np.ndarray:
        if kind == "passage":
            self.encoded += texts
            if self.log is not None:
                with open(self.log, "a", encoding="utf-8") as handle:
                    handle.writelines(f"{text}\n" for text in texts)
        return np.stack([sum(map(_word, text.split())) for text in texts]).astype(np.float32)


def _word(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal(DIM)


def corpus(count: int) -> list[str]:
    """``count`` distinct texts of three words."""
    names = ["red", "blue", "green", "old", "new", "fast", "slow"]
    return [f"{names[i % 7]} {names[i // 7 % 7]} item{i}" for i in range(count)]
