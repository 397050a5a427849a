"""Backends that the parity tests run on, each with the dtypes it takes."""

import pytest
import torch

from d2llm_kernels import backends

_DTYPES = {
    "folded": (torch.float64, torch.float32, torch.bfloat16),
    "cpu": (torch.float32, torch.bfloat16),
}


def _param(*values: object) -> object:
    reason = backends.missing(str(values[0]))
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param(*values, marks=marks)


#: Names of the backends.
BACKENDS = [_param(name) for name in _DTYPES]
#: (backend, dtype).
CASES = [_param(name, dtype) for name, dtypes in _DTYPES.items() for dtype in dtypes]
