"""Exceptions of the kernels: each names the argument, what was expected and what came."""


class KernelError(Exception):
    """Base of every error that a caller of the kernels can cause and mend."""


class ArgumentError(KernelError, ValueError):
    """A tensor or option that cannot be used as given."""


class BackendError(KernelError, RuntimeError):
    """A backend that was asked for by name and is not there."""
