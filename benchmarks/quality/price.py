"""What each way to search costs for what it finds: a table, and docs/quality.png.

Of cost, the multiply-adds of a query are counted that products of matrices take: they are the same on every machine.
Attention is left out, which on texts this short adds a few per cent, and so is BM25, which multiplies next to nothing.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from benchmarks.quality import last_stage, students
from benchmarks.quality.asked import Asked
from benchmarks.quality.measured import COSINE, HYBRID, IEM, LEXICAL, Measured
from benchmarks.quality.sets import sets
from d2llm.data.validation import Validation
from d2llm.evaluation.significance import Means, difference
from d2llm.files import atomic_path
from d2llm.shipped import BASE_MODEL, TEACHER
from d2llm.student import D2LLM
from d2llm.teacher.model import Teacher

PART = "price"
PICTURE = Path(__file__).parents[2] / "docs" / "quality.png"
SETS = ("docstrings", "everyday-documented")
#: Queries and passages whose tokens are counted.
_TEXTS = 200
#: What is compared, the cheapest first.
SYSTEMS = (
    LEXICAL,
    f"MiniLM, {COSINE}",
    *(f"shipped, {way}" for way in (COSINE, IEM, HYBRID)),
    last_stage.BOTH,
)


def blocks(asked: Asked) -> dict[str, list[str]]:
    """The table and the picture, of what the students and the teacher as a last stage have been measured at."""
    found, judged = Measured(asked.work, students.PART), Measured(asked.work, last_stage.PART)
    ranks: dict[str, dict[str, np.ndarray]] = {}
    for name in SETS:
        for system in SYSTEMS:
            of = judged.ranks(name, system) if system == last_stage.BOTH else found.ranks(name, system)
            if of is not None:
                ranks.setdefault(name, {})[system] = of
    if [len(each) for each in ranks.values()] != [len(SYSTEMS)] * len(SETS):
        print(f"{PART}: students and last-stage are to be measured first, on {' and '.join(SETS)}")
        return {}
    price = multiply_adds(asked, sets(None)[SETS[1]]())
    draw(ranks, price, PICTURE)
    lines = [
        f"| system | multiply-adds a query | {' | '.join(SETS)} |",
        f"| --- | ---: |{' ---: |' * len(SETS)}",
    ]
    for system in SYSTEMS:
        cost = f"{price[system] / 1e6:,.0f} million" if system in price else "-"
        lines.append(f"| {system} | {cost} | {' | '.join(f'{ranks[name][system].mean():.3f}' for name in SETS)} |")
    return {PART: lines}


def multiply_adds(asked: Asked, data: Validation) -> dict[str, float]:
    """Of every system but BM25, a mean query's over these passages."""
    student, teacher = D2LLM.from_pretrained(asked.student), Teacher.from_pretrained(BASE_MODEL, TEACHER)
    queries, count = list(data.queries[:_TEXTS]), len(data.passages)
    ids = student.tokenizer(queries, truncation=True, max_length=student.config.query_length)["input_ids"]
    encode = statistics.mean(map(len, ids)) * weights(student.backbone)
    cosine, iem = count * student.dim, count * student.iem.hidden**2
    prompts = teacher.builder(data.task).build(queries, list(data.passages[: len(queries)]))
    judge = last_stage.BEST * statistics.mean(map(len, prompts)) * weights(teacher.decoder)
    by_iem = dict.fromkeys((f"shipped, {IEM}", f"shipped, {HYBRID}"), encode + iem)
    by_cosine = dict.fromkeys((f"MiniLM, {COSINE}", f"shipped, {COSINE}"), encode + cosine)
    return {**by_cosine, **by_iem, last_stage.BOTH: encode + iem + judge}


def weights(model: nn.Module) -> int:
    """Weights that a token is multiplied by; LoRA's are merged into them."""
    layers = (module for name, module in model.named_modules() if ".lora_" not in name)
    return sum(module.weight.numel() for module in layers if isinstance(module, nn.Linear))


def draw(ranks: Mapping[str, Mapping[str, np.ndarray]], price: Mapping[str, float], path: Path) -> None:
    """Write a PNG: a panel a set, MRR with its 95 % interval against the multiply-adds of a query."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axes, (name, systems) in zip(figure.subplots(1, len(ranks)), ranks.items(), strict=True):
        axes.axhline(systems[LEXICAL].mean(), color="0.5", ls="--", lw=1, label=LEXICAL)
        for number, system in enumerate(price):
            each = systems[system]
            around = difference(Means(each, np.zeros_like(each)))
            # Systems of one cost stand beside each other.
            shift = 1.06 ** [other for other in price if price[other] == price[system]].index(system)
            spread = [[around.value - around.low], [around.high - around.value]]
            axes.errorbar(
                price[system] * shift, around.value, spread, fmt="o", capsize=3, color=f"C{number}", label=system
            )
        axes.set(title=name, xlabel="multiply-adds a query", ylabel="MRR, 95 % interval over queries", xscale="log")
        axes.legend(fontsize=8, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
