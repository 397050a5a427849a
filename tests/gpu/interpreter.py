"""Triton's interpreter without most of its time: it looks through all of triton.language at each call of a function.

What a kernel's own module sees of the language is patched once a launch. At every call of a device function the
interpreter patches what that function's module sees, and leaves it so: once is enough.
"""

from typing import Any

from triton.runtime.interpreter import InterpretedFunction


def patch_once_a_module() -> None:
    """Device functions of a module whose language is patched already run as they are."""
    first_call, patched = InterpretedFunction.__call__, set[str]()

    def call(self: InterpretedFunction, *args: Any, **named: Any) -> Any:
        if self.fn.__module__ in patched:
            return self.rewrite()(*args, **named)
        patched.add(self.fn.__module__)
        return first_call(self, *args, **named)

    InterpretedFunction.__call__ = call
