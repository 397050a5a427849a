"""The adapter of a tuned teacher: what is loaded is as it was saved, or refused."""

import json
import os
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from d2llm.errors import D2LLMError
from d2llm.files import read_json
from d2llm.teacher.adapter import ADAPTER_WEIGHTS, SETTINGS, _digest, save_adapter
from d2llm.teacher.model import Teacher
from tests.torture import worker
from tests.torture.folders import exchange_tensor
from tests.torture.mutate import mutated_bytes, mutated_value
from tests.torture.readers import refusing
from tests.torture.writers import save_model

_PEFT = "adapter_config.json"


@cache
def adapter() -> tuple[Path, Path, Teacher]:
    """A tiny LLM, the folder of an adapter on it, and the teacher of both."""
    folder = Path(os.environ["TORTURE_STUDENT"])
    llm, kept = folder / "llm", folder / "adapter"
    if not kept.exists():
        save_model(llm)
        teacher = Teacher.from_pretrained(llm)
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION")
        teacher.decoder = get_peft_model(teacher.decoder, lora)
        save_adapter(teacher.decoder, teacher.settings(), kept)
    return llm, kept, Teacher.from_pretrained(llm, kept)


def adapters(generator: random.Random, folder: Path) -> None:
    """One file altered, as bytes or as a value; then perhaps sealed again, as by one who means it."""
    llm, kept, made = adapter()
    shutil.copytree(kept, folder / "adapter", dirs_exist_ok=True)
    path = folder / "adapter" / generator.choice((SETTINGS, _PEFT, ADAPTER_WEIGHTS))
    resealed = generator.random() < 0.7
    if generator.random() < 0.4:
        path.write_bytes(mutated_bytes(generator, path.read_bytes()))
    elif path.name == ADAPTER_WEIGHTS:
        tensors = load_file(path)
        exchange_tensor(generator, tensors)
        save_file(tensors, path, {"format": "pt"})
    else:
        path.write_text(json.dumps(mutated_value(generator, json.loads(path.read_text()))))
    if resealed:
        _reseal(folder / "adapter")
    found = Teacher.from_pretrained(llm, folder / "adapter")
    weights, origin = found.decoder.state_dict(), ("model", "revision", "base")
    assert all(value.isfinite().all() for value in weights.values())
    if not resealed:
        assert all(torch.equal(value, weights[name]) for name, value in made.decoder.state_dict().items())
        # The name of the LLM and its revision may be edited by hand.
        assert replace(found.settings(), **dict.fromkeys(origin)) == replace(made.settings(), **dict.fromkeys(origin))


def _reseal(folder: Path) -> None:
    with suppress(D2LLMError, AttributeError, TypeError):
        settings = read_json(folder / SETTINGS)
        settings.pop("sha256", None)
        # In ASCII: half a surrogate pair has no bytes of its own.
        (folder / SETTINGS).write_text(json.dumps({**settings, "sha256": _digest(folder, settings)}))


TARGETS: dict[str, worker.Try] = {"adapters": refusing(adapters)}
