"""Tiny random causal LMs whose tokenizer knows yes, no and the Chinese answers as single tokens."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = [" yes", " no", "是", "不是", "能", "不能", "Answer: yes", "the file", "a socket of the server"]


def save_model(folder: Path, kind: str = "llama", texts: list[str] = TEXTS, **settings: Any) -> str:
    """Save a random model of two layers and width 32 with a byte-level tokenizer trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<eos>", "<bos>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")
    fast.save_pretrained(folder)
    sizes = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**sizes, **settings})).save_pretrained(folder)
    return str(folder)
