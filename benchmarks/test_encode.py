"""A whole encode with a student on the LLM and with the shipped one, beside the same weights under other libraries."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from benchmarks import backend, corpus
from d2llm.export.onnx import ENCODER, export_onnx
from d2llm.student import D2LLM
from d2llm.texts import batches_by_length, pad, tokenize
from d2llm_kernels.measure.case import Call, Case, Prepared
from d2llm_kernels.measure.contract import Verdict, agreement

_TRANSFORMERS, _SENTENCE_TRANSFORMERS = "transformers", "sentence-transformers"
#: What runs the student's ONNX graph, in float32.
_ONNXRUNTIME, _OPENVINO = "onnxruntime", "openvino"
#: The student itself with ``compile_encoder``, and with ``quantize_encoder``.
_COMPILED, _INT8 = "torch.compile", "int8 layers"
#: How far from 1 the cosine of an embedding by int8 and that in float may be.
_INT8_COSINE = 0.01
#: Texts at once where tokens do not decide.
_BATCH = 32


def cases(full: bool) -> Iterator[Case]:
    """The rows."""
    for texts in (16, 64, 256) if full else (64,):
        yield _encode("SmolLM2, 8 layers", corpus.llm_student, texts, compiled=full)
    yield _encode("MiniLM", corpus.student, 256 if full else 64, compiled=full)


def _encode(name: str, students: Any, texts: int, compiled: bool) -> Case:
    engines = (_ONNXRUNTIME, _OPENVINO) if find_spec("onnxscript") else ()
    others = [peer for peer in (_SENTENCE_TRANSFORMERS, *engines) if find_spec(peer.replace("-", "_"))]
    others += [_COMPILED] * compiled + [_INT8]

    def prepare(device: torch.device) -> Prepared:
        student = students()
        passages = [pair.positive for pair in corpus.pairs()[:texts]]
        ids = tokenize(student.tokenizer, passages, student.config.passage_length)
        encode = partial(student.encode, passages, show_progress=False, convert_to="torch")
        folder = tempfile.TemporaryDirectory()
        student.save_pretrained(folder.name, merged=True)
        peers = {_TRANSFORMERS: _transformers(folder, ids, student.tokenizer.pad_token_id)}
        if _SENTENCE_TRANSFORMERS in others:
            peers[_SENTENCE_TRANSFORMERS] = _sentence_transformers(folder, passages, student)
        for engine, graph in ((_ONNXRUNTIME, _onnxruntime), (_OPENVINO, _openvino)):
            if engine in others:
                run = graph(_exported(folder, student))
                peers[engine] = partial(_by_graph, run, ids, student.dim, student.tokenizer.pad_token_id)
        rounded = students.__wrapped__().quantize_encoder()
        peers[_INT8] = partial(rounded.encode, passages, show_progress=False, convert_to="torch")
        if compiled:
            whole = students.__wrapped__().compile_encoder()
            peers[_COMPILED] = partial(whole.encode, passages, show_progress=False, convert_to="torch")

        def check(name: str) -> Verdict:
            if name in (_COMPILED, _ONNXRUNTIME, _OPENVINO):
                return agreement(peers[name](), _unmerged(student, ids), torch.bfloat16)
            if name == _INT8:
                cosine = torch.nn.functional.cosine_similarity(peers[name](), _unmerged(student, ids))
                return Verdict(1 - cosine.min().item(), _INT8_COSINE, "1 - the least cosine")
            if name in peers:
                return agreement(peers[name](), _mean_pooled(student, ids), torch.bfloat16)
            return agreement(backend.under(name, encode), _unmerged(student, ids), torch.bfloat16)

        return Prepared(
            # Padding is no work that the result needs: the operations of each text by itself.
            sum(map(partial(_flops, student), map(len, ids))),
            sum(p.numel() * p.element_size() for p in student.backbone.parameters()),
            backend.kernel(encode),
            backend.literal(partial(_unmerged, student, ids)),
            check,
            peers={name: partial(Call, run) for name, run in peers.items()},
            items=("tokens", sum(map(len, ids))),
        )

    return Case("encode", f"{name}, {texts} passages", torch.bfloat16, 1, prepare, peers=(_TRANSFORMERS, *others))


def _batches(ids: list[list[int]], pad_id: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    for rows in batches_by_length([len(tokens) for tokens in ids], _BATCH):
        yield rows, *pad([ids[row] for row in rows], pad_id)


@torch.inference_mode()
def _unmerged(student: D2LLM, ids: list[list[int]]) -> Tensor:
    """The student as it is trained, LoRA beside its base."""
    found = torch.empty(len(ids), student.dim)
    for rows, tokens, mask in _batches(ids, student.tokenizer.pad_token_id):
        found[rows] = student.embed(tokens, mask)
    return found


@torch.inference_mode()
def _mean_pooled(student: D2LLM, ids: list[list[int]], backbone: Any = None) -> Tensor:
    """Mean hidden states, which is what libraries make of an LLM that they know nothing else of."""
    found = torch.empty(len(ids), student.dim)
    for rows, tokens, mask in _batches(ids, student.tokenizer.pad_token_id):
        found[rows] = _mean(student.hidden(tokens, mask, backbone), mask)
    return found


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _transformers(
    folder: "tempfile.TemporaryDirectory[str]", ids: list[list[int]], pad_id: int
) -> Callable[[], Tensor]:
    """The merged base in plain transformers, in batches of like length."""
    model = AutoModel.from_pretrained(Path(folder.name) / "base", dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run() -> Tensor:
        found = torch.empty(len(ids), model.config.hidden_size)
        for rows, tokens, mask in _batches(ids, pad_id):
            found[rows] = _mean(model(input_ids=tokens, attention_mask=mask, use_cache=False)[0], mask)
        return found

    return run


def _sentence_transformers(
    folder: "tempfile.TemporaryDirectory[str]", passages: list[str], student: D2LLM
) -> Callable[[], Tensor]:
    """The merged base in sentence-transformers, which sorts by length too."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    path = Path(folder.name) / "base"
    # It would put every text into a chat.
    (path / "chat_template.jinja").unlink(missing_ok=True)
    base = Transformer(str(path), max_seq_length=student.config.passage_length, model_kwargs={"dtype": torch.bfloat16})
    model = SentenceTransformer(modules=[base, Pooling(student.dim, "mean")], device="cpu")
    options = {"batch_size": _BATCH, "show_progress_bar": False, "convert_to_tensor": True}
    return lambda: model.encode(passages, **options).float()


def _exported(folder: "tempfile.TemporaryDirectory[str]", student: D2LLM) -> Path:
    """The student's encoder as an ONNX graph."""
    graphs = Path(folder.name) / "graphs"
    if not graphs.exists():
        export_onnx(student, graphs)
    return graphs / ENCODER


def _onnxruntime(graph: Path) -> Callable[[Tensor, Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = ("input_ids", "attention_mask")
    return lambda *given: session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})[0]


def _openvino(graph: Path) -> Callable[[Tensor, Tensor], Any]:
    import openvino

    model = openvino.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda tokens, mask: model([tokens.numpy(), mask.numpy()])[0]


def _by_graph(run: Callable[[Tensor, Tensor], Any], ids: list[list[int]], dim: int, pad_id: int) -> Tensor:
    """Embeddings by a graph, in batches of like length."""
    found = torch.empty(len(ids), dim)
    for rows, tokens, mask in _batches(ids, pad_id):
        found[rows] = torch.from_numpy(run(tokens, mask.long()))
    return found


@torch.inference_mode()
def _flops(student: D2LLM, length: int) -> int:
    """Operations of the merged LLM on one text."""
    with FlopCounterMode(display=False) as counter:
        backbone = student.inference.of(student.backbone, torch.bfloat16)
        backbone(torch.ones(1, length, dtype=torch.int64))
    return counter.get_total_flops()


def test_encode(outcome):
    assert "failure" not in outcome, outcome["failure"]
