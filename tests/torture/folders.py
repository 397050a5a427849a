"""Readers of binary files and folders: score tables, students, indexes, vector files. What they take is as it was."""

import json
import os
import random
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from d2llm.data.example import text_id
from d2llm.index import Index
from d2llm.student import D2LLM
from d2llm.student.configuration import FREE, Architecture
from d2llm.student.vector_file import VectorFile
from d2llm.teacher.scores import ScoreTable, _checksum
from tests.conftest import save_base
from tests.index.index_fakes import WordEncoder, corpus
from tests.torture import worker
from tests.torture.mutate import mutated_bytes, mutated_value
from tests.torture.readers import refusing

Q, A, B = map(text_id, ("q", "a", "b"))


@cache
def table() -> ScoreTable:
    header = {"model": "m", "templates": {"asym": "t"}, "answers": {"asym": [3, 4]}}
    return ScoreTable(header, {(Q, A): (1.25, -0.5), (Q, B): (0.0, 3.0)}, {(Q, (A, B)): np.array([[1, 0.5], [0.5, 1]])})


def scores(generator: random.Random, folder: Path) -> None:
    path = folder / "s.safetensors"
    table().save(path)
    resealed = generator.random() < 0.5
    if resealed:
        _exchange(generator, path)
    else:
        path.write_bytes(mutated_bytes(generator, path.read_bytes()))
    read = ScoreTable.load(path)
    assert all(np.isfinite(pair).all() for _, pair in read.items())
    assert all(np.abs(matrix).max() <= 1.001 for _, matrix in read.relations())
    assert resealed or dict(read.items()) == dict(table().items())


def _exchange(generator: random.Random, path: Path) -> None:
    """Another tensor or header in a table, with the checksum that belongs to it."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["d2llm_teacher"])
    tensors = load_file(path)
    if generator.random() < 0.3:
        about = mutated_value(generator, about)
    else:
        exchange_tensor(generator, tensors)
    if isinstance(about, dict):
        # Where numpy lacks the number type, or there is no header, the old checksum stands.
        with suppress(TypeError, KeyError):
            about["sha256"] = _checksum(about["header"], {name: value.numpy() for name, value in tensors.items()})
    save_file(tensors, path, {"d2llm_teacher": json.dumps(about)})


def exchange_tensor(generator: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    """Another value, number type or shape for one tensor, in place."""
    name = generator.choice(sorted(tensors))
    value = tensors[name].clone()
    kind = generator.randrange(6)
    if kind == 0:
        value = value.to(generator.choice((torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool)))
    elif kind == 1:
        value = value[None] if generator.random() < 0.5 else value[..., None]
    elif kind == 2:
        value = value[:-1] if value.dim() else value[None]
    elif kind == 3:
        value = torch.cat([value, value]) if value.dim() else value
    elif value.numel():
        number = generator.choice((-5, 2**40, 0, 1, float("nan"), float("inf"), 1e30))
        if value.is_floating_point() or abs(number) < 2**40 + 1:
            value.view(-1)[generator.randrange(value.numel())] = (
                number if value.is_floating_point() else int(number) % 256
            )
    tensors[name] = value.contiguous()


@cache
def student() -> tuple[Path, D2LLM]:
    """A tiny student, saved without its base."""
    folder = Path(os.environ["TORTURE_STUDENT"])
    if not (folder / "student" / "config.json").exists():
        D2LLM.create(save_base(folder / "base"), lora_r=2, iem_hidden=8, lora_targets=["q_proj"]).save_pretrained(
            folder / "student"
        )
    return folder / "student", D2LLM.from_pretrained(folder / "student")


def students(generator: random.Random, folder: Path) -> None:
    kept, made = student()
    shutil.copytree(kept, folder / "student", dirs_exist_ok=True)
    config, weights = folder / "student" / "config.json", folder / "student" / "model.safetensors"
    kind = generator.randrange(4)
    if kind == 0:
        weights.write_bytes(mutated_bytes(generator, weights.read_bytes()))
    elif kind == 1:
        config.write_bytes(mutated_bytes(generator, config.read_bytes()))
    elif kind == 2:
        config.write_text(json.dumps(mutated_value(generator, json.loads(config.read_text()))))
    else:
        tensors = load_file(weights)
        exchange_tensor(generator, tensors)
        save_file(tensors, weights, {"format": "pt"})
    found = D2LLM.from_pretrained(folder / "student")
    for name, value in found.trainable_state().items():
        assert value.isfinite().all(), name
        assert kind == 3 or torch.equal(value, made.trainable_state()[name]), name
    for name in Architecture.__annotations__.keys() - FREE:
        assert kind == 3 or getattr(found.config, name) == getattr(made.config, name), name


@cache
def index(folder: Path) -> tuple[dict[str, bytes], Any]:
    """The files of a whole index with deletions, by their names, and what a search finds."""
    kept = Index.build(WordEncoder(), corpus(20), folder / "kept", shard_size=8, progress=False)
    kept.delete(["3", "11"])
    kept.fit_surrogate(rank=4, progress=False)
    files = {str(path.relative_to(kept.path)): path.read_bytes() for path in kept.path.rglob("*") if path.is_file()}
    return files, kept.search("red item4", 18)


def indexes(generator: random.Random, folder: Path) -> None:
    files, found = index(folder)
    names = sorted(name for name in files if name != ".lock")
    which = generator.choice([*names, *["manifest.json"] * 4])
    for name in names:
        path = folder / "index" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutated_bytes(generator, files[name]) if name == which else files[name])
    if which == "manifest.json" and generator.random() < 0.7:
        _reseal(generator, folder / "index" / which, files[which])
    opened = Index.open(folder / "index", WordEncoder(), verify=True)
    assert opened.search("red item4", len(opened)) == found or which == "manifest.json"
    assert {hit.id for hit in found[0]} == set(opened.ids()) or which == "manifest.json"


def _reseal(generator: random.Random, path: Path, content: bytes) -> None:
    """A manifest with one field exchanged, and the checksum that belongs to it."""
    from d2llm.index.manifest import _digest

    body = json.loads(content)
    del body["sha256"]
    body = mutated_value(generator, body)
    path.write_text(json.dumps({**body, "sha256": _digest(body)} if isinstance(body, dict) else body))


def vectors(generator: random.Random, folder: Path) -> None:
    """A half-written file of vectors is taken up where its record says, or begun again."""
    for path in folder.glob("*v.npy*"):
        path.unlink()
    rows = torch.arange(12, dtype=torch.float32).view(6, 2)
    try:
        with VectorFile(folder / "v.npy", (6, 2), "key") as file:
            file.write(0, rows[:4])
            raise InterruptedError
    except InterruptedError:
        pass
    which = generator.choice((folder / ".v.npy.partial", folder / "v.npy.json"))
    header = which.read_bytes()
    # The rows themselves carry no checksum: half an array that is mapped for writing cannot have one.
    cut = 128 if which.suffix == ".partial" else len(header)
    which.write_bytes(mutated_bytes(generator, header[:cut]) + header[cut:])
    with VectorFile(folder / "v.npy", (6, 2), "key") as file:
        assert 0 <= file.done <= 6
        begun = file.done
        file.write(begun, rows[begun:])
    assert file.read().shape == (6, 2)


TARGETS: dict[str, worker.Try] = {read.__name__: refusing(read) for read in (scores, students, indexes, vectors)}
