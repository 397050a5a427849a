"""The shipped search: Python's standard library behind the shipped student, without any training."""

import sysconfig
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from d2llm.cache import cache_folder
from d2llm.compact import restore
from d2llm.data.docstrings import by_name, standard_library_functions
from d2llm.data.example import text_id
from d2llm.errors import MissingError
from d2llm.index import Index
from d2llm.index.manifest import VERSION
from d2llm.shipped import DOCUMENTED_VECTORS, STUDENT, VECTORS
from d2llm.student import D2LLM


def open_library() -> Index:
    """The index of the running Python's standard library, with the shipped student to search it; ids name functions.

    A passage is a function's name, its signature and the beginning of its docstring. The index is built in the cache
    folder at first use. Passages that the shipped vectors hold are not encoded again; those that only this version of
    Python has are.

    Raises:
        MissingError: if the package was installed without its shipped student.
    """
    if not STUDENT.is_dir():
        raise MissingError(f"shipped student: {STUDENT} not found; this installation lacks the package's data")
    student = D2LLM.from_pretrained(STUDENT)
    path = cache_folder() / f"library-signatures-{VERSION}-{sysconfig.get_python_version()}-{student.fingerprint()}"
    if (path / "manifest.json").is_file():
        return Index.open(path, student)
    found = by_name(standard_library_functions())
    passages = [function.documented for function in found.values()]
    vectors = library_vectors(student, passages, DOCUMENTED_VECTORS)
    return Index.build(student, passages, path, ids=list(found), vectors=vectors, overwrite=True)


def library_vectors(student: D2LLM, passages: list[str], file: Path = VECTORS) -> np.ndarray:
    """Embeddings (N, D) float32 of passages: the shipped ones of ``file`` by passage id, the others encoded now."""
    ids = [text_id(passage) for passage in passages]
    shipped = {name: value.numpy() for name, value in restore(load_file(file)).items()}
    rows = {row.tobytes().hex(): i for i, row in enumerate(shipped["ids"])}
    absent = [passage for passage, key in zip(passages, ids, strict=True) if key not in rows]
    encoded = student.encode(absent, kind="passage") if absent else np.empty((0, student.dim), np.float32)
    fresh = {text_id(passage): row for passage, row in zip(absent, encoded, strict=True)}
    return np.stack([fresh[key] if key in fresh else shipped["vectors"][rows[key]] for key in ids])
