"""The shipped student, on an encoder that is good already: ``python -m d2llm.demo.encoder OUT`` makes it in one go.

Its data are functions of the standard library and of many packages, which pip fetches at first. Killed, it goes on
where it was.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from d2llm.data.example import Example
from d2llm.demo.corpus import kept_examples
from d2llm.demo.recipe import FULL, SHARE, STUDENT, TRAINING, Phase
from d2llm.demo.training import train_phase
from d2llm.shipped import STUDENT_MODEL
from d2llm.student import D2LLM
from d2llm.training.start import fit_warm_start

#: In a student's folder: what it learns from.
TRAINING_FILE = "train.jsonl"


def draw_back(student: D2LLM, start: Mapping[str, Tensor], share: float) -> None:
    """Leave a student ``share`` of the way that it has gone from the weights it started with, in place.

    What its base knew of other texts comes back sooner than what it has learnt is lost (WiSE-FT, arXiv 2109.01903). Of
    LoRA's two factors the second, which starts at 0, is drawn back, so that their product is.
    """
    for name, value in student.trainable_state().items():
        if ".lora_A." not in name:
            # What learns on an accelerator has gone there since.
            value.copy_(torch.lerp(start[name].to(value.device), value, share))


def train(
    examples: Sequence[Example],
    out: Path,
    base: str = STUDENT_MODEL,
    phase: Phase = TRAINING,
    full: bool = False,
    share: float = SHARE,
) -> D2LLM:
    """The student, trained on these examples and drawn back to a share of its way; ``out`` has start and checkpoints.

    ``out/start`` has the base's own cosine, as nothing has learnt there. ``full`` trains the base itself in place of
    LoRA on it.
    """
    student = D2LLM.create(base, **STUDENT | (FULL if full else {}))
    fit_warm_start(student, examples, phase.seed)
    student.save_pretrained(out / "start")
    start = {name: value.clone() for name, value in student.trainable_state().items()}
    train_phase(student, phase, examples, out / "checkpoints", resume=True)
    draw_back(student, start, share)
    return student


def make(out: Path, base: str = STUDENT_MODEL, phase: Phase = TRAINING, full: bool = False) -> D2LLM:
    """Train the student and write it to ``out/student``, in eight bits, beside its data, start and checkpoints."""
    student = train(kept_examples(out / TRAINING_FILE), out, base, phase, full)
    student.save_pretrained(out / "student", head_dtype=torch.int8)
    return student


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m d2llm.demo.encoder", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder of the student, its data and its checkpoints")
    parser.add_argument("--seed", type=int, default=TRAINING.seed, help="of the order of the data")
    parser.add_argument("--full", action="store_true", help="train the encoder itself, not LoRA on it")
    asked = parser.parse_args()
    make(asked.out, phase=replace(TRAINING, seed=asked.seed), full=asked.full)


if __name__ == "__main__":
    main()
