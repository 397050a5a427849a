"""What a failure looks like at the command line: one clear message and an exit code, no traceback."""

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from d2llm.errors import D2LLMError
from d2llm.requirements import missing

#: Exit code of an error that the user can mend, as for a wrong option.
MENDABLE = 2
#: Exit code of a command stopped by Ctrl-C: 128 + SIGINT.
STOPPED = 130


class GuardedGroup(TyperGroup):
    """Commands whose expected failures end in a message; any other exception is a fault and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that ``ctx`` names.

        Raises:
            typer.Exit: with ``MENDABLE`` or ``STOPPED``, after a line on stderr.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("\nstopped; what is written is kept; run the same command to go on", err=True)
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
            raise typer.Exit(MENDABLE) from None


def explain(error: Exception) -> str | None:
    """What a user should read about an exception; None for a fault of the program."""
    if is_disk_full(error):
        return "the disk is full; free some space and run the same command: what was finished is kept"
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe, such as head, has had enough: the group's caller ends the command quietly.
        return None
    if isinstance(error, (D2LLMError, OSError)):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return missing(error.name.partition(".")[0])
    return str(error) if _is_kernel_error(error) else None


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or what it came from, says that no space is left."""
    # safetensors reports the system's error as a text.
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


def _is_kernel_error(error: Exception) -> bool:
    # Imported here, since it brings torch along, which whoever raised such an error has loaded already.
    from d2llm_kernels.errors import KernelError

    return isinstance(error, KernelError)
