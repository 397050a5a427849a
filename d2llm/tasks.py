"""The two tasks of D2LLM and their branch numbers in the interaction module (paper section 3)."""

from d2llm.errors import InputError

SYM = "sym"
ASYM = "asym"
TASKS = (SYM, ASYM)


def task_index(task: str | int) -> int:
    """Branch of the interaction module for a task name or number: 0 symmetric, 1 asymmetric.

    Raises:
        InputError: if the task is neither one of ``TASKS`` nor one of their indices.
    """
    if isinstance(task, str) and task in TASKS:
        return TASKS.index(task)
    if isinstance(task, int) and not isinstance(task, bool) and 0 <= task < len(TASKS):
        return task
    raise InputError(f"task: expected one of {TASKS} or an index below {len(TASKS)}, got {task!r}")
