"""A whole encode with the shipped student: LLM and pooling, with and without padding."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import backend, corpus
from d2llm.student import D2LLM
from d2llm.texts import batches_by_length, pad, tokenize
from d2llm_kernels.measure.case import Case, Prepared
from d2llm_kernels.measure.contract import Verdict, agreement

_BATCH = 16
_TITLES = {
    "in order": "batches as texts come, padded",
    "by length": "batches of like length, padded",
    "packed": "batches of like length, pooling packed",
}


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for how, title in _TITLES.items():
        yield _encode(how, title, 64 if full else 32)


def _encode(how: str, title: str, texts: int) -> Case:
    def prepare(device: torch.device) -> Prepared:
        student = corpus.student()
        passages = [pair.positive for pair in corpus.pairs()[:texts]]
        ids = tokenize(student.tokenizer, passages, student.config.passage_length)
        lengths = [len(tokens) for tokens in ids]
        in_order = [list(range(start, min(start + _BATCH, texts))) for start in range(0, texts, _BATCH)]
        plan = in_order if how == "in order" else list(batches_by_length(lengths, _BATCH))
        batches = [pad([ids[row] for row in rows], student.tokenizer.pad_token_id) for rows in plan]
        embed = _packed if how == "packed" else D2LLM.embed
        places = torch.tensor([row for rows in plan for row in rows])

        @torch.inference_mode()
        def run() -> Tensor:
            return torch.cat([embed(student, *batch) for batch in batches])[places.argsort()]

        def check(name: str) -> Verdict:
            got, exact = (backend.under(each, run) for each in (name, "reference"))
            # The LLM's own bfloat16 moves with the padding of a batch, and is the same for both here.
            return agreement(got, exact, torch.bfloat16)

        tokens = sum(lengths)
        return Prepared(
            # Padding is no work that the result needs: the operations of a text of mean length, for each.
            _flops(lambda: student.backbone(torch.ones(1, tokens // texts, dtype=torch.int64))) * texts,
            sum(p.numel() * p.element_size() for p in student.backbone.parameters()),
            backend.kernel(run),
            backend.literal(run),
            check,
            items=("tokens", tokens),
            facts={"padded_tokens": sum(batch.numel() for batch, _ in batches), "tokens": tokens},
        )

    return Case("encode", f"{texts} passages, {title}", torch.bfloat16, 1, prepare)


def _packed(student: D2LLM, tokens: Tensor, mask: Tensor) -> Tensor:
    """``student.embed`` with the padding gone before pooling."""
    hidden = student.backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    offsets = F.pad(mask.sum(1).cumsum(0), (1, 0))
    return student.pma(hidden[mask.bool()].to(student.pma.S.dtype), cu_seqlens=offsets).float()


@torch.inference_mode()
def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_encode(outcome):
    assert "failure" not in outcome, outcome["failure"]
