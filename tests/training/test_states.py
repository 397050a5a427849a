"""Training the heads on hidden states that were computed once: as without, refused where they no longer fit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import make_config, make_examples

from d2llm.data.example import Example
from d2llm.data.jsonl import read_examples, write_examples
from d2llm.data.positives import KnownPositives
from d2llm.data.validation import Validation
from d2llm.errors import InputError, MismatchError
from d2llm.evaluation.systems import student_mrr
from d2llm.files import read_json
from d2llm.student import D2LLM
from d2llm.training import train
from d2llm.training.collator import Collator
from d2llm.training.config import TrainConfig, build_config
from d2llm.training.states import TokenStates

LIMITS = {"query_length": 6, "passage_length": 8}


def heads(base_model: str, **fields: Any) -> D2LLM:
    student = D2LLM.create(base_model, lora_r=0, iem_hidden=8, **LIMITS, **fields)
    for name, value in student.trainable_state().items():
        if name.startswith("pma."):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return student


def logits(student: D2LLM, examples: list[Example], states: TokenStates | None, **how: Any) -> tuple[torch.Tensor, ...]:
    batch = Collator(student.tokenizer, 6, 8, KnownPositives(examples), vectors=states)(examples)
    given = {name: value for name, value in batch.items() if name not in ("valid", "duplicates", "s", "log_odds")}
    output = student(**given, **how)
    return output.logits, output.in_batch_logits


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_states_give_the_logits_of_tokens(base_model: str, tmp_path: Path, base_dtype: str) -> None:
    student, examples = heads(base_model, base_dtype=base_dtype), make_examples()
    states = TokenStates.kept(student, examples, tmp_path)
    # float16 of float32 states; bfloat16 ones are kept as they are, but computed beside other texts.
    tolerance = {"float32": 2e-3, "bfloat16": 2e-2}[base_dtype]
    for how in ({}, {"texts_per_chunk": 3}):
        for found, expected in zip(
            logits(student, examples[:6], states, **how), logits(student, examples[:6], None), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    held_out = Validation.from_examples(e for e in examples if e.task == "sym")
    embedded = states.embeddings(student, held_out.queries, held_out.passages)
    for kind, texts, found in zip(("query", "passage"), (held_out.queries, held_out.passages), embedded, strict=True):
        expected = student.encode(texts, kind, convert_to="torch")
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_examples(path, [Example(e.query, e.positive, e.negatives) for e in make_examples()])
    return path


def run_of(base_model: str, output: Path, examples_file: Path, **run: Any) -> TrainConfig:
    values = asdict(make_config(base_model, output, patience=None, **{"max_steps": 4, **run}))
    values["student"] = {"lora_r": 0, "iem_hidden": 8, **LIMITS}
    values["optimizer"] |= {"schedule": "constant_with_warmup"}
    values["data"] |= {"train": str(examples_file)}
    return build_config(values)


def test_a_run_on_states_is_the_run_on_tokens_and_goes_on(
    base_model: str, tmp_path: Path, examples_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_of(base_model, tmp_path / "tokens", examples_file))
    train(run_of(base_model, tmp_path / "states", examples_file, cache_states=True, max_steps=2))

    def unneeded(*_: Any) -> None:
        raise AssertionError("the base was asked for states that lie there")

    warm = {name: tmp_path / name / "checkpoint-4" / "model.safetensors" for name in ("tokens", "states")}
    monkeypatch.setattr(D2LLM, "hidden", unneeded)
    train(run_of(base_model, tmp_path / "states", examples_file, cache_states=True), resume=True)
    monkeypatch.undo()
    tokens, states = (load_file(path) for path in warm.values())
    start = load_file(tmp_path / "tokens" / "checkpoint-0" / "model.safetensors")
    # All together, since the optimizer gives what has no gradient but rounding as large a step as the rest.
    ways = [torch.cat([(end[name] - start[name]).flatten() for name in start]) for end in (tokens, states)]
    assert torch.dist(*ways) < 0.05 * ways[0].norm(), (torch.dist(*ways), ways[0].norm())
    kept = D2LLM.from_pretrained(tmp_path / "states")
    outcome = read_json(tmp_path / "states" / "outcome.json")
    held_out = Validation.by_task(e for e in _held_out(tmp_path / "states"))
    assert outcome["mrr"] == pytest.approx(student_mrr(kept, held_out["asym"])["mrr"])


def _held_out(folder: Path) -> list[Example]:
    return read_examples(folder / "validation.jsonl")


def test_states_of_other_texts_or_another_base_are_refused(base_model: str, tmp_path: Path) -> None:
    student, examples = heads(base_model), make_examples()
    TokenStates.kept(student, examples, tmp_path)
    with pytest.raises(MismatchError, match="texts: expected"):
        TokenStates.kept(student, examples[::-1], tmp_path)
    with pytest.raises(MismatchError, match="autocast: expected 'None'"):
        TokenStates.kept(student, examples, tmp_path, torch.bfloat16)
    student.backbone.embed_tokens.weight.data += 0.1
    with pytest.raises(MismatchError, match="base: expected"):
        TokenStates.kept(student, examples, tmp_path)


def test_states_are_written_whole_or_not_at_all(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, examples = heads(base_model), make_examples()
    with pytest.raises(InputError, match="passage states: 1 texts were not encoded, such as 'unseen'"):
        TokenStates.kept(student, examples, tmp_path / "whole").inputs(["open the file"], ["unseen"])
    hidden = D2LLM.hidden

    def beyond(self: D2LLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 1e6 * hidden(self, ids, mask)

    monkeypatch.setattr(D2LLM, "hidden", beyond)
    with pytest.raises(InputError, match=r"within torch\.float16's range, got larger ones; set student\.base_dtype"):
        TokenStates.kept(student, examples, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(InputError, match="of disk for the states of all texts"):
        TokenStates.kept(student, examples, tmp_path)


def test_what_learns_has_no_states_to_keep(base_model: str, tmp_path: Path) -> None:
    student = D2LLM.create(base_model, lora_r=2)
    with pytest.raises(InputError, match=r"run\.cache_states: expected a base that learns nothing .* got lora_r 2"):
        TokenStates.kept(student, make_examples(), tmp_path)
    with pytest.raises(InputError, match="run.cache_states, interaction_only: expected one of them"):
        make_config(base_model, tmp_path, cache_states=True, interaction_only=True)
    values = asdict(make_config(base_model, tmp_path, cache_states=True)) | {"mining": {"corpus": "c.jsonl"}}
    with pytest.raises(InputError, match="mining.corpus: expected none with run.cache_states"):
        build_config(values)
