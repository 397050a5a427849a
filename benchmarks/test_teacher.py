"""The demonstration's tuned teacher on groups of pairs, beside the same weights read prompt by prompt, unmerged."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import backend, corpus
from d2llm.shipped import TEACHER
from d2llm.tasks import ASYM
from d2llm.teacher.model import Teacher
from d2llm.teacher.prompt import left_pad
from d2llm.texts import batches_by_length
from d2llm_kernels.measure.case import Case, Prepared
from d2llm_kernels.measure.contract import Verdict, agreement, distance

#: Tokens at once in the plain form.
_TOKENS = 4096


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for dtype in (torch.bfloat16, torch.float32) if full else (torch.bfloat16,):
        yield _judge(8 if full else 4, 9, dtype)


def _judge(queries: int, passages: int, dtype: torch.dtype) -> Case:
    def prepare(device: torch.device) -> Prepared:
        teacher = Teacher.from_pretrained(adapter=TEACHER, dtype=dtype)
        pairs = corpus.pairs()[: queries * passages]
        asked = [pair.query for pair in pairs[:queries] for _ in range(passages)]
        held = [pair.positive for pair in pairs]
        prompts = teacher.builder(ASYM).build(asked, held)

        def judge() -> Tensor:
            return torch.from_numpy(teacher.judge(asked, held, ASYM)[0])

        def check(name: str) -> Verdict:
            plain = _plain(teacher, prompts)
            if dtype == torch.float32:
                return agreement(judge(), plain, dtype)
            exact = _plain(Teacher.from_pretrained(adapter=TEACHER), prompts)
            # Both round; neither may be much further from float32 than the other.
            return Verdict(distance(judge(), exact), 2 * distance(plain, exact))

        layers = teacher.inference.of(teacher.decoder, dtype)
        weights = sum(layer.weight.numel() for layer in layers.modules() if isinstance(layer, torch.nn.Linear))
        return Prepared(
            # Two for each weight and token that has to be read: of a query's prompts, the beginning once.
            2 * weights * len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}),
            sum(p.numel() * p.element_size() for p in layers.parameters()),
            backend.kernel(judge),
            backend.literal(partial(_plain, teacher, prompts)),
            check,
            items=("pairs", len(prompts)),
        )

    return Case("teacher", f"{queries} queries x {passages} passages", dtype, 1, prepare, backends=("cpu",))


@torch.inference_mode()
def _plain(teacher: Teacher, prompts: list[list[int]]) -> Tensor:
    """Logits (N, 2) of whole prompts, LoRA beside its base."""
    found = torch.empty(len(prompts), 2)
    for rows in batches_by_length([len(prompt) for prompt in prompts], token_budget=_TOKENS):
        inputs = left_pad([prompts[row] for row in rows], teacher.tokenizer.pad_token_id)
        found[rows] = teacher(inputs, ASYM)[0]
    return found


def test_teacher(outcome):
    assert "failure" not in outcome, outcome["failure"]
