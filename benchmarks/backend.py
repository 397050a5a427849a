"""Whole programs under one backend: modules that say "auto" follow the environment."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from d2llm.bench.case import LITERAL, Call, Wrap
from d2llm_kernels.backends import ENVIRONMENT


@contextmanager
def chosen(backend: str) -> Iterator[None]:
    """Let ``auto`` mean ``backend``."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


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
