"""Texts on their way into a model: checked, as token ids, in batches of like length, padded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from d2llm.errors import InputError, shown

if TYPE_CHECKING:
    from torch import Tensor

#: Padded tokens in a batch, whatever number of texts it may have: bounds the memory of long ones.
TOKEN_BUDGET = 8192
#: The same for encoding without gradients on a CPU: what a layer makes of them stays in its caches.
CPU_TOKENS = 768
#: Texts tokenized at once.
_TOKENIZE_CHUNK = 4096


def check_text(text: Any, name: str, blank: bool = False) -> None:
    """Make sure that something is a text and, unless ``blank`` allows it, more than white space.

    Raises:
        InputError: naming the argument.
    """
    if not isinstance(text, str) or not (blank or text.strip()):
        raise InputError(f"{name}: expected a {'' if blank else 'non-empty '}text, got {shown(text)}")


def has_bytes(text: str) -> bool:
    """Whether a text can be written in UTF-8: half of a surrogate pair cannot, and no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Sequence[str], name: str = "texts", *, none: bool = False, blank: bool = False) -> list[str]:
    """The texts as a list.

    Args:
        texts: what a caller gave.
        name: of the argument, for the message.
        none: whether there may be no text at all.
        blank: whether a text may be empty or only white space.

    Raises:
        InputError: naming the first one that is not such a text; for a lone string; for none at all.
    """
    return list(check_sequence(texts, name, none=none, blank=blank))


def check_sequence(
    texts: Sequence[str], name: str = "texts", *, none: bool = False, blank: bool = False
) -> Sequence[str]:
    """As :func:`check_texts`, but a sequence comes back as it is, so that one on a disk stays there."""
    if isinstance(texts, str):
        raise InputError(f"{name}: expected a list of texts, got one text; put it in a list")
    checked = texts if isinstance(texts, Sequence) else list(texts)
    if not (len(checked) or none):
        raise InputError(f"{name}: expected at least one text, got none")
    for i, text in enumerate(checked):
        check_text(text, f"{name}[{i}]", blank)
    return checked


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of every text, cut on the right to ``max_length``; no padding.

    A control token that a text spells out, such as ``<|im_end|>``, is plain text.

    Raises:
        InputError: if a text has no token, or half of a surrogate pair.
    """
    ids: list[list[int]] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        if odd := next((text for text in chunk if not has_bytes(text)), None):
            raise InputError(f"texts: expected text, got half of a surrogate pair in {shown(odd)}")
        ids += tokenizer(chunk, truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
    for text, tokens in zip(texts, ids, strict=True):
        if not tokens:
            raise InputError(f"texts: the tokenizer makes no token of {text!r}")
    return ids


def tokenize_ahead(
    tokenizer: Any, texts: Sequence[str], max_length: int, start: int = 0
) -> Iterator[tuple[int, list[list[int]]]]:
    """Some thousand texts at a time from number ``start`` on: the number of the first, and :func:`tokenize` of all.

    While a caller works on some, the next are tokenized in another thread.
    """

    def part(first: int) -> list[list[int]]:
        return tokenize(
            tokenizer, [texts[i] for i in range(first, min(first + _TOKENIZE_CHUNK, len(texts)))], max_length
        )

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(part, start)
        for first in range(start, len(texts), _TOKENIZE_CHUNK):
            ids = ahead.result()
            if first + _TOKENIZE_CHUNK < len(texts):
                ahead = pool.submit(part, first + _TOKENIZE_CHUNK)
            yield first, ids


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of every text before :func:`tokenize` cuts it."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]]


def batches_by_length(
    lengths: Sequence[int], batch_size: int | None = None, token_budget: int = TOKEN_BUDGET
) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory peaks at the start.

    Each batch has at most ``batch_size`` rows, where that is given, and, unless it is one row, at most
    ``token_budget`` padded tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, lengths[order[start]]))
        rows = rows if batch_size is None else min(rows, batch_size)
        yield order[start : start + rows]
        start += rows


def even_batches(
    lengths: Sequence[int], threads: int, batch_size: int | None = None, token_budget: int = TOKEN_BUDGET
) -> list[list[int]]:
    """:func:`batches_by_length` of about equal size, as many for each of some threads where there are enough rows."""
    fewest = len(list(batches_by_length(lengths, batch_size, token_budget)))
    most = -(-fewest // threads) * threads
    below, enough = 0, token_budget
    while enough - below > 1:
        tried = (below + enough) // 2
        if len(list(batches_by_length(lengths, batch_size, tried))) <= most:
            enough = tried
        else:
            below = tried
    return list(batches_by_length(lengths, batch_size, enough))


def pad(ids: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right") -> "tuple[Tensor, Tensor]":
    """Token ids (N, L) int64, padded on one side, and their mask (N, L) int64, 1 for real tokens."""
    # Imported here: the checks above serve data and BM25, which need no torch.
    import torch

    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, text in enumerate(ids):
        place = slice(len(text)) if side == "right" else slice(width - len(text), width)
        tokens[row, place] = torch.tensor(text)
        mask[row, place] = 1
    return tokens, mask
