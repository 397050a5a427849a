"""A student as ONNX graphs: texts' tokens to embeddings, embeddings of pairs to logits, at any batch and length."""

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from d2llm import merging
from d2llm.errors import InputError
from d2llm.files import atomic_path
from d2llm.requirements import require
from d2llm.student import D2LLM
from d2llm.tasks import TASKS, task_index

ENCODER = "encoder.onnx"
#: Bytes of weights from which on they lie in a file beside the graph, which protobuf caps at 2 GB.
_APART = 1 << 30


class _Encoder(nn.Module):
    """Decoder with LoRA merged, then PMA, each in plain torch operations."""

    def __init__(self, student: D2LLM) -> None:
        super().__init__()
        self.backbone = merging.merged(student.backbone, torch.float32)
        self.backbone.set_attn_implementation("eager")
        self.pma = copy.deepcopy(student.pma).float()
        self.pma.backend = "reference"
        layers = self.backbone.config.num_hidden_layers
        self.layer = None if student.config.hidden_layer in (-1, layers) else student.config.hidden_layer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=self.layer is not None,
        )
        hidden = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        pooled: Tensor = self.pma(hidden, attention_mask)
        return pooled


class _Interaction(nn.Module):
    """IEM of one branch."""

    def __init__(self, student: D2LLM, task: int) -> None:
        super().__init__()
        self.iem = copy.deepcopy(student.iem).float()
        self.iem.backend = "reference"
        self.task = task

    def forward(self, query: Tensor, passage: Tensor) -> Tensor:
        logits: Tensor = self.iem(query, passage, self.task)
        return logits


def export_onnx(student: D2LLM, folder: str | os.PathLike[str]) -> None:
    """Write ``encoder.onnx``, ``iem-asym.onnx``, ``iem-sym.onnx`` and the tokenizer; the folder appears when whole.

    The encoder takes ``input_ids`` and ``attention_mask``, (B, L) int64, padded on the right, and gives
    ``sentence_embedding`` (B, D) float32; its metadata tell ``query_length`` and ``passage_length``, to which texts are
    cut, by the tokenizer with ``split_special_tokens=True``. An IEM takes ``query`` and ``passage``, (N, D) float32,
    and gives ``logit`` (N,).

    Args:
        student: stays as it is; LoRA is merged, and all weights are float32.
        folder: to be made.

    Raises:
        InputError: if the folder exists, or the base is in fewer bits than a graph of ONNX holds.
        ModuleNotFoundError: without the extra ``onnx``.
    """
    require("onnxscript", "onnx")
    if Path(folder).exists():
        raise InputError(f"folder: expected one that is not there yet, got {os.fspath(folder)}")
    if merging.is_quantised(student.backbone):
        raise InputError("student: expected a base of floating weights, got a quantised one; load it without")
    tokens = torch.ones(2, 7, dtype=torch.int64)
    lengths = {name: str(getattr(student.config, name)) for name in ("query_length", "passage_length")}
    rows, columns = Dim("batch"), Dim("length")
    with atomic_path(folder) as target, torch.no_grad():
        target.mkdir()
        shapes = {name: {0: rows, 1: columns} for name in ("input_ids", "attention_mask")}
        # Two tensors, since a graph takes one for both inputs.
        inputs, encoder = (tokens, tokens.clone()), _on_cpu(_Encoder(student))
        _write(encoder, inputs, shapes, "sentence_embedding", target / ENCODER, lengths)
        pair = (torch.zeros(2, student.dim), torch.zeros(2, student.dim))
        for task in TASKS:
            module = _on_cpu(_Interaction(student, task_index(task)))
            shapes = {name: {0: rows} for name in ("query", "passage")}
            _write(module, pair, shapes, "logit", target / f"iem-{task}.onnx", {"task": task})
        student.tokenizer.save_pretrained(target)


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module with weights on the CPU; a student on a GPU that shares them keeps its own."""
    module.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()}, assign=True)
    return module.cpu().eval()


def _write(
    module: nn.Module,
    example: tuple[Tensor, Tensor],
    shapes: dict[str, dict[int, Any]],
    output: str,
    path: Path,
    metadata: dict[str, str],
) -> None:
    with warnings.catch_warnings():
        # That inputs share an axis, and what torch's parts tell each other.
        for kind in (UserWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        program = torch.onnx.export(
            module,
            example,
            input_names=list(shapes),
            output_names=[output],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    program.save(path, external_data=size > _APART)
