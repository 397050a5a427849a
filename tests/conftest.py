"""A tiny random Llama with its own tokenizer, saved as a transformers folder."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where a test asks for several threads, they wait for each other asleep: other tests want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from d2llm.data.docstrings import Function, standard_library_functions
from d2llm.data.example import Example
from tests import unsynced as unsynced

# A busy machine is no fault of what is tested.
with suppress(ImportError):  # Where kernels alone are tested, on a GPU's machine.
    from hypothesis import HealthCheck, settings

    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")

TEXTS = [
    f"{verb} the {noun} of {thing}"
    for verb in ("open", "close", "read")
    for noun in ("file", "socket")
    for thing in ("a b c", "x y", "z")
]


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a decoder with 3 layers, width 32 and 4 attention heads."""
    return save_base(tmp_path_factory.mktemp("base"))


def save_base(folder: Path) -> str:
    """Save that decoder, the same each time, and its tokenizer."""
    # Tests of kernels do without what takes seconds to import.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def library_functions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Function, ...]:
    """The functions of the standard library, whose files take seconds to read: one worker does it for all."""
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    kept = folder / "library.json"
    with FileLock(folder / "library.lock"):
        if not kept.exists():
            kept.write_text(json.dumps([asdict(function) for function in standard_library_functions()]))
    return tuple(Function(**function) for function in json.loads(kept.read_text()))


@pytest.fixture(scope="session")
def library_pairs(library_functions: tuple[Function, ...]) -> tuple[Example, ...]:
    """Their distinct pairs."""
    return tuple(dict.fromkeys(function.pair for function in library_functions))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch computes with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
