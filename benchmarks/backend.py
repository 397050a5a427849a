"""Whole programs under one backend: modules that say "auto" follow the environment."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from d2llm_kernels.backends import ENVIRONMENT
from d2llm_kernels.measure.case import LITERAL, Call, Wrap


@contextmanager
def setting(variable: str, value: str) -> Iterator[None]:
    """An environment variable with this value."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def chosen(backend: str) -> AbstractContextManager[None]:
    """Let ``auto`` mean ``backend``."""
    return setting(ENVIRONMENT, backend)


def under(backend: str, run: Callable[[], object]) -> object:
    """What ``run`` gives where ``auto`` means ``backend``."""
    with chosen(backend):
        return run()


def kernel(run: Callable[[], object]) -> Callable[[str], Call]:
    """``Prepared.kernel`` of a program."""
    return lambda backend: Call(partial(under, backend, run))


def literal(run: Callable[[], object]) -> Callable[[Wrap], Call]:
    """``Prepared.literal`` of a program: the whole of it with the literal heads."""
    return lambda wrap: Call(wrap(partial(under, LITERAL, run)))
