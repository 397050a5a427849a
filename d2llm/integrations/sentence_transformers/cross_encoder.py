"""A teacher as a CrossEncoder of sentence-transformers, made of that library's own modules alone."""

import json
import tempfile

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import AutoModelForCausalLM

from d2llm import merging
from d2llm.errors import InputError
from d2llm.tasks import ASYM
from d2llm.teacher.model import Teacher
from d2llm.teacher.prompt import PromptBuilder

#: How a template names its texts, and how the library names the roles that bring them.
_ROLES = {"query": "query", "passage": "document"}
#: A pair that shows whether prompts come out as the teacher's.
_PROBE = "add two numbers", "def add(a, b): return the sum of two numbers"


def cross_encoder(
    teacher: Teacher, task: str = ASYM, dtype: torch.dtype = torch.float32, device: str | None = None
) -> CrossEncoder:
    """A copy of a teacher whose scores are its log-odds of yes, not squeezed; saved, it loads without this package.

    The template becomes the tokenizer's chat template. A prompt that is too long loses the end of its passage, where a
    teacher cuts both texts, each to its own length; control tokens that a text spells out are read as such.

    Args:
        teacher: stays as it is; an adapter is merged.
        task: whose template asks.
        dtype: number type of all weights.
        device: where it computes; None lets sentence-transformers choose.

    Raises:
        InputError: for a task without a template, or prompts that a chat template cannot spell.
    """
    builder = teacher.builder(task)
    logits = {"method": "forward", "method_output_name": "logits"}
    with tempfile.TemporaryDirectory() as folder:
        _save(teacher, dtype, folder)
        teacher.tokenizer.save_pretrained(folder)
        transformer = Transformer(
            folder,
            transformer_task="text-generation",
            model_kwargs={"dtype": dtype},
            modality_config={"text": logits, "message": {**logits, "format": "flat"}},
            module_output_name="causal_logits",
            max_seq_length=builder.longest,
        )
    transformer.tokenizer.chat_template = _chat_template(builder)
    transformer.model.config._name_or_path = transformer.tokenizer.name_or_path = ""
    made = CrossEncoder(
        modules=[transformer, LogitScore(builder.yes, builder.no)], activation_fn=torch.nn.Identity(), device=device
    )
    found = made.preprocess([_PROBE])["input_ids"][0].tolist()
    expected = builder.build([_PROBE[0]], [_PROBE[1]])[0]
    if found != expected:
        raise InputError(
            f"teacher: expected prompts that a chat template can spell, got tokens {expected[:8]}... that become "
            f"{found[:8]}...; PairScorer scores by any teacher"
        )
    return made.eval()


def _save(teacher: Teacher, dtype: torch.dtype, folder: str) -> None:
    """Decoder and head as the one model that they were, an adapter merged."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(teacher.decoder.config)
    parts = [(lm.get_decoder(), teacher.decoder)]
    # What is tied is saved once.
    if not lm.config.tie_word_embeddings:
        parts.append((lm.get_output_embeddings(), teacher.head))
    weights: dict[str, torch.Tensor] = {}
    for empty, full in parts:
        prefix = next(name for name, module in lm.named_modules() if module is empty)
        weights |= {f"{prefix}.{name}": value for name, value in merging.merged(full, dtype).state_dict().items()}
    lm.to(dtype).save_pretrained(folder, state_dict=weights)


def _chat_template(builder: PromptBuilder) -> str:
    """The template in Jinja, with whatever the tokenizer puts before a text."""
    text = builder.tokenizer.decode(builder.beginning)
    rendered = f"{{{{ {_literal(text)} }}}}" if text else ""
    for literal, field in builder.template.pieces():
        rendered += f"{{{{ {_literal(literal)} }}}}" if literal else ""
        if field is not None:
            chosen = f"messages | selectattr('role', 'equalto', '{_ROLES[field]}') | map(attribute='content') | first"
            rendered += f"{{{{ {chosen} }}}}"
    return rendered


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
