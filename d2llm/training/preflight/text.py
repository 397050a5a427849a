"""A pre-flight report as text."""

import math
from collections.abc import Sequence
from datetime import timedelta

from d2llm.training.preflight.facts import Facts, Lengths
from d2llm.training.preflight.survey import Coverage
from d2llm.training.preflight.trial import StepCost


def as_text(facts: Facts, cost: StepCost | None, warnings: Sequence[str], errors: Sequence[str]) -> str:
    """Lines of a label and what was found, warnings and errors last."""
    rows = _facts(facts)
    if cost is not None:
        rows.append(("a step", _cost(cost, facts.steps)))
    rows += [("warning", text) for text in warnings] + [("error", text) for text in errors]
    return "\n".join(f"{label + ':':<10} {text}" for label, text in rows)


def _facts(facts: Facts) -> list[tuple[str, str]]:
    tasks = ", ".join(f"{count} {task}" for task, count in facts.tasks.items())
    processes = f" in each of {facts.processes} processes" if facts.processes > 1 else ""
    found, negatives = facts.survey, facts.negatives
    looked_at = "" if facts.looked_at == facts.examples else f"; of texts and negatives those of {facts.looked_at}"
    judged = "none: labels alone"
    if facts.teacher or found.groups.judged:
        judged = f"{_share(found.groups)} of queries and their own passages"
    if facts.teacher:
        judged += f", {_share(found.in_batch)} within a batch"
    return [
        ("examples", f"{facts.examples} ({tasks}){looked_at}"),
        ("steps", f"{facts.steps} of {facts.batch_size} examples{processes}, the first {facts.warmup_steps} warm up"),
        ("teacher", judged),
        ("negatives", f"{negatives.given}, of which an example brings at most {negatives.drawn} to a batch"),
        ("queries", _lengths(facts.queries)),
        ("passages", _lengths(facts.passages)),
    ]


def _share(coverage: Coverage) -> str:
    return f"{coverage.judged} of {coverage.met} pairs judged ({coverage.share:.1%})"


def _lengths(lengths: Lengths) -> str:
    return (
        f"{lengths.texts} texts of {lengths.median} tokens (median; 90 %: {lengths.percentile_90}, 99 %: "
        f"{lengths.percentile_99}, longest: {lengths.longest}), {lengths.cut:.1%} are cut to {lengths.limit}"
    )


def _cost(cost: StepCost, steps: int) -> str:
    whole = timedelta(seconds=math.ceil(cost.seconds * steps))
    return (
        f"{cost.seconds:.2f} s, so {whole} (h:min:s) for all of them without evaluation; "
        f"{cost.bytes / 1e9:.1f} of {cost.available / 1e9:.1f} GB"
    )
