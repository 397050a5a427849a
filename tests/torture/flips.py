"""Flipped bits: ``verify`` misses none in an index, ``open`` none in its small files, and loading none in a student."""

import random
import time
from pathlib import Path

from d2llm.errors import D2LLMError
from d2llm.index import Index
from d2llm.student import D2LLM
from d2llm.student.checkpoint import CONFIG, _read_config
from d2llm.student.configuration import FREE, Architecture
from d2llm.student.weights import WEIGHTS, Header, read_weights
from tests.conftest import save_base
from tests.index.index_fakes import WordEncoder, corpus
from tests.torture.tally import Tally

#: Names, or how they begin.
_SMALL = ("head-", "deleted-", "manifest.json", "segment.json")


def run(seconds: float, seed: int, folder: Path) -> list[Tally]:
    """Flip a bit of a file, and look whether it is found."""
    generator = random.Random(seed)
    index = Index.build(WordEncoder(), corpus(30), folder / "index", shard_size=8, progress=False)
    index.delete(["3", "20"])
    student = folder / "student"
    D2LLM.create(save_base(folder / "base"), lora_r=2, iem_hidden=8).save_pretrained(student)
    made = _read_config(student / CONFIG)
    index.fit_surrogate(rank=4, progress=False)
    files = [path for path in index.path.rglob("*.*") if path.is_file() and path.name != ".lock"]
    small = [path for path in files if path.name.startswith(_SMALL)]
    large = [path for path in files if path not in small]

    def seen(path: Path) -> bool:
        try:
            if path.parent == student:
                config = _read_config(student / CONFIG)
                Header.read(student / WEIGHTS).check_architecture(config, student / CONFIG)
                read_weights(student / WEIGHTS)
                # What may be edited by hand is not sealed.
                sealed = Architecture.__annotations__.keys() - FREE
                return path.name == CONFIG and all(getattr(config, n) == getattr(made, n) for n in sealed)
            if path in large:
                index.verify()
            else:
                Index.open(index.path)
        except D2LLMError:
            return True
        return False

    rows: dict[str, list[Path]] = {
        "flips of head, deleted, manifest, segment.json, at open": small,
        "flips of an index's other files, at verify": large,
        "flips of a student": [student / WEIGHTS, student / WEIGHTS, student / CONFIG],
    }
    tallies = []
    for what, files in rows.items():
        tallies.append(tally := Tally(what))
        ends = time.time() + seconds / len(rows)
        while time.time() < ends:
            path = generator.choice(files)
            whole = path.read_bytes()
            place, bit = generator.randrange(len(whole)), generator.randrange(8)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with tally.attempt(f"{path.relative_to(folder)}, byte {place}, bit {bit}"):
                assert seen(path), "nobody saw it"
            path.write_bytes(whole)
    return tallies
