"""The student before its distillation: the shipped one with its earlier interaction module, all that was trained."""

from safetensors.torch import load_file, save_file

from d2llm.compact import restore, shrink
from d2llm.files import atomic_path
from d2llm.shipped import FIRST_PHASE, STUDENT
from d2llm.student import D2LLM


def save_first_phase(student: D2LLM) -> None:
    """Ship the interaction module of a student after its first phase."""
    with atomic_path(FIRST_PHASE) as temporary:
        save_file(shrink(student.iem.state_dict()), temporary)


def load_first_phase() -> D2LLM:
    """The student that a demonstration starts from."""
    student = D2LLM.from_pretrained(STUDENT)
    student.iem.load_state_dict(restore(load_file(FIRST_PHASE)))
    return student
