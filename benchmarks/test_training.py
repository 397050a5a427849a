"""A whole training step: forward, five losses, backward and optimizer, of the student and of its heads alone."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import backend, corpus
from d2llm.data.example import Example
from d2llm.demo.recipe import DISTIL, Phase
from d2llm.student import D2LLM
from d2llm.texts import tokenize
from d2llm.training import DistillationTrainer
from d2llm.training.vectors import TextVectors
from d2llm_kernels.measure.case import Call, Case, Prepared
from d2llm_kernels.measure.contract import Verdict, agreement, distance

_NEGATIVES = 8
#: ``run.torch_compile``.
_COMPILED = "torch.compile"
#: The same step with its chunks of texts one after the other, all threads at one.
_IN_TURN = "chunks in turn"


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    yield _heads(DISTIL.batch_size)
    if full:
        yield _whole(8, 2)


def _heads(batch: int) -> Case:
    """The interaction module on embeddings made before, as the demonstration trains it."""

    def prepare(device: torch.device) -> Prepared:
        student, examples = _fresh_student(), _examples(2 * batch, _NEGATIVES)
        vectors = TextVectors(
            *(
                (texts, torch.randn(len(texts), student.dim))
                for texts in (
                    [example.query for example in examples],
                    list(dict.fromkeys(text for example in examples for text in example.passages)),
                )
            )
        )
        pairs = batch * batch + batch * (1 + _NEGATIVES)
        hidden = student.iem.hidden
        flops = 4 * pairs * (2 * hidden**2 + 4 * hidden) + 3 * 2 * batch * (2 + _NEGATIVES) * student.dim * hidden
        heads = sum(parameter.numel() for parameter in student.iem.parameters())
        return _prepared(student, examples, DISTIL, flops, 4 * 5 * heads, pairs, "pairs", vectors)

    return Case("training step, heads alone", f"B={batch} K={_NEGATIVES}", torch.float32, 1, prepare)


def _whole(batch: int, negatives: int) -> Case:
    """LoRA and heads, through the LLM."""

    def prepare(device: torch.device) -> Prepared:
        student, examples = _fresh_student(), _examples(2 * batch, negatives)
        phase = Phase(steps=1, lr=1e-4, batch_size=batch, negatives=negatives)
        weights = sum(p.numel() * p.element_size() for p in student.backbone.parameters())
        limits = student.config.query_length, student.config.passage_length
        texts = [text for example in examples[:batch] for text in (example.query, *example.passages)]
        tokens = sum(map(len, tokenize(student.tokenizer, texts, max(limits))))
        # Each frozen weight is multiplied with each token, and once more with the gradient that passes through.
        layers = [layer for layer in student.backbone.modules() if isinstance(layer, torch.nn.Linear)]
        flops = 4 * sum(layer.weight.numel() for layer in layers) * tokens
        return _prepared(student, examples, phase, flops, 2 * weights, tokens, "tokens")

    shape = f"B={batch} K={negatives}"
    return Case("training step, LoRA and heads", shape, torch.bfloat16, 1, prepare, peers=(_IN_TURN, _COMPILED))


def _prepared(
    student: D2LLM,
    examples: list[Example],
    phase: Phase,
    flops: float,
    traffic: float,
    count: int,
    items: str,
    vectors: TextVectors | None = None,
) -> Prepared:
    folder = Path(tempfile.gettempdir()) / "d2llm-benchmark"
    trainer = DistillationTrainer(
        student, phase.config(student.config.base_model, str(folder)), examples, vectors=vectors
    )
    batch = next(iter(trainer.get_train_dataloader()))
    step = Step(trainer, student, batch)
    peers = {}
    if vectors is None:
        turn = Step(trainer, _fresh_student(), batch)
        turn.student.chunks_in_turn = True
        graph = Step(trainer, _fresh_student(), batch)
        graph.student.compile_steps()
        peers |= {_IN_TURN: turn, _COMPILED: graph}

    def check(name: str) -> Verdict:
        plain = backend.under("reference", step.gradients)
        got = peers[name].gradients() if name in peers else backend.under(name, step.gradients)
        if vectors:
            return agreement(got, plain, torch.float32)
        # Through layers in bfloat16 both round, a fifth of the gradient; neither may be much further from float32's.
        wide = Step(trainer, _fresh_student(), batch)
        wide.student.backbone.float()
        exact = backend.under("reference", wide.gradients)
        return Verdict(distance(got, exact), 2 * distance(plain, exact))

    return Prepared(
        flops,
        traffic,
        backend.kernel(step),
        backend.literal(step),
        check,
        peers={name: partial(Call, run) for name, run in peers.items()},
        items=(items, count),
    )


class Step:
    """One step of a student on a batch, from the same weights each time: its rate is 0."""

    def __init__(self, trainer: DistillationTrainer, student: D2LLM, batch: dict[str, Any]) -> None:
        self.trainer, self.student, self.batch = trainer, student, batch
        self.optimizer = torch.optim.AdamW((p for p in student.parameters() if p.requires_grad), lr=0.0)

    def gradients(self) -> Tensor:
        """All of them, one after the other."""
        self.optimizer.zero_grad()
        self.trainer.compute_loss(self.student, dict(self.batch)).backward()
        return torch.cat([p.grad.flatten() for p in self.student.parameters() if p.grad is not None])

    def __call__(self) -> None:
        self.gradients()
        self.optimizer.step()


def _fresh_student() -> D2LLM:
    """A student on the LLM, not the one that other rows encode with."""
    return corpus.llm_student.__wrapped__().train()


def _examples(count: int, negatives: int) -> list[Example]:
    """Pairs with other pairs' functions as hard negatives, and a teacher's logits for all of them."""
    pairs = corpus.pairs()
    functions = list(dict.fromkeys(pair.positive for pair in pairs))
    examples = []
    for number, pair in enumerate(pairs[:count]):
        start = count + number * negatives
        others = tuple(text for text in functions[start : start + negatives + 1] if text != pair.positive)[:negatives]
        scores = ((2.0, -1.0), *((-1.0 - place, 1.0) for place in range(len(others))))
        examples.append(Example(pair.query, pair.positive, others, pair.task, scores))
    return examples


def test_training(outcome):
    assert "failure" not in outcome, outcome["failure"]
