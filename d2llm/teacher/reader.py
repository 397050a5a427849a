"""Prompts through an LLM: the last hidden state of each, in batches of like length.

The template puts the query first, so that the prompts of one query begin alike. That beginning is read once and kept as
keys and values; what differs is read behind it.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from d2llm.merging import takes_turns
from d2llm.side_by_side import side_by_side
from d2llm.teacher.prompt import left_pad
from d2llm.texts import batches_by_length

#: Least share of all tokens that need not be read again, for beginnings to be kept.
_WORTH = 0.05

Prompt = Sequence[int]
#: Numbers of some prompts and their last hidden states (n, D).
Read = tuple[list[int], Tensor]


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts with an LLM in evaluation mode.

    Args:
        model: a decoder without its head.
        pad_id: a token to pad with.
        batch_tokens: most tokens at once, unless one prompt has more.
        device: where the model is.
    """

    model: Any
    pad_id: int
    batch_tokens: int
    device: torch.device

    def read(self, prompts: Sequence[Prompt], queries: Sequence[str]) -> Iterator[Read]:
        """Numbers of some prompts and their last hidden states (n, D), until all have come.

        Args:
            prompts: N of them, as token ids.
            queries: N texts; prompts of the same one begin alike.
        """
        shared = self._beginnings(prompts, queries)
        begun = {row for _, rows in shared for row in rows}
        alone = [row for row in range(len(prompts)) if row not in begun]
        lengths = [len(prompts[row]) for row in alone]
        pieces: list[Callable[[], list[Read]]] = [
            partial(self._whole, prompts, [alone[row] for row in rows]) for rows in self._batches(lengths)
        ]
        start = 0
        for size in _sizes([len(beginning) for beginning, _ in shared], self.batch_tokens // 2):
            pieces.append(partial(self._behind, prompts, shared[start : start + size]))
            start += size
        each = map if takes_turns(self.model) else partial(side_by_side, device=self.device)
        yield from chain.from_iterable(each(_call, pieces))

    def _whole(self, prompts: Sequence[Prompt], rows: list[int]) -> list[Read]:
        """Prompts from their first token on."""
        return [(rows, self._last(self._pad([prompts[row] for row in rows])))]

    def _beginnings(self, prompts: Sequence[Prompt], queries: Sequence[str]) -> list[tuple[Prompt, list[int]]]:
        """What the prompts of a query share, with their numbers, for each that has several; none if it saves little."""
        groups: dict[str, list[int]] = {}
        for row, query in enumerate(queries):
            groups.setdefault(query, []).append(row)
        found = []
        for rows in (rows for rows in groups.values() if len(rows) > 1):
            beginning = _beginning([prompts[row] for row in rows])
            if beginning:
                found.append((beginning, rows))
        saved = sum(len(beginning) * (len(rows) - 1) for beginning, rows in found)
        return found if saved >= _WORTH * sum(map(len, prompts)) and _keeps_all(self.model) else []

    def _behind(self, prompts: Sequence[Prompt], shared: Sequence[tuple[Prompt, list[int]]]) -> list[Read]:
        """Prompts of some queries, whose beginnings are read first."""
        beginnings = self._pad([beginning for beginning, _ in shared])
        cache = DynamicCache(config=self.model.config)
        self._run(beginnings, cache)
        pairs = [(place, len(beginning), row) for place, (beginning, rows) in enumerate(shared) for row in rows]
        rest = [prompts[row][length:] for _, length, row in pairs]
        found = []
        for batch in self._batches([len(tokens) for tokens in rest]):
            places = torch.tensor([pairs[i][0] for i in batch], device=self.device)
            kept = copy.deepcopy(cache)
            kept.batch_select_indices(places)
            inputs = self._pad([rest[i] for i in batch])
            inputs["attention_mask"] = torch.cat([beginnings["attention_mask"][places], inputs["attention_mask"]], 1)
            inputs["position_ids"] += torch.tensor([[pairs[i][1]] for i in batch], device=self.device)
            found.append(([pairs[i][2] for i in batch], self._last(inputs, kept)))
        return found

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        return batches_by_length(lengths, token_budget=self.batch_tokens)

    def _pad(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in left_pad(prompts, self.pad_id).items()}

    def _last(self, inputs: dict[str, Tensor], cache: DynamicCache | None = None) -> Tensor:
        hidden: Tensor = self._run(inputs, cache).last_hidden_state[:, -1]
        return hidden

    def _run(self, inputs: dict[str, Tensor], cache: DynamicCache | None) -> Any:
        if cache is None:
            return self.model(**inputs, use_cache=False)
        # The later name, where the installed transformers has it already.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        return self.model(**inputs, **{name: cache}, use_cache=True)


@torch.inference_mode()
def _call(piece: Callable[[], list[Read]]) -> list[Read]:
    return piece()


def _beginning(prompts: Sequence[Prompt]) -> Prompt:
    """What all of them begin with; of each one token is left to read at least."""
    together = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return prompts[0][: sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))]


def _keeps_all(model: Any) -> bool:
    """Whether a cache holds keys and values of every token, so that padding may lie between two of them.

    A window would count the padding, and a recurrent state would take it in.
    """
    config = model.config
    layers = {kind for name in ("layer_types", "layers_block_type") for kind in getattr(config, name, None) or ()}
    return (
        hasattr(config, "num_attention_heads")
        and getattr(config, "sliding_window", None) is None
        and layers <= {"full_attention", "attention"}
    )


def _sizes(lengths: Sequence[int], most: int) -> Iterator[int]:
    """How many in a row to take at once, so that their lengths come to ``most`` or they are one."""
    count = total = 0
    for length in lengths:
        if count and total + length > most:
            yield count
            count = total = 0
        count += 1
        total += length
    if count:
        yield count
