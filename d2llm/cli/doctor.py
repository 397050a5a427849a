"""d2llm doctor."""

import typer

_COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "error": typer.colors.RED}


def doctor() -> None:
    """Check the installation and say what to mend.

    Versions, kernels, the LLM, what was shipped, the cache, the disk.

    Ends with exit code 1 if something is broken; a warning is something that only some commands need.
    """
    from d2llm.doctor import run_checks
    from d2llm_kernels import explain

    checks = run_checks()
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = typer.style(f"{check.status:<5}", fg=_COLORS[check.status])
        typer.echo(f"{status}  {check.name:<{width}}  {check.detail}")
        if check.advice:
            typer.echo(f"{'':<5}  {'':<{width}}  -> {check.advice}")
    typer.echo("\nkernels\n" + explain())
    if any(check.status == "error" for check in checks):
        raise typer.Exit(1)
