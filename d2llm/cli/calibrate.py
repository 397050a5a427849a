"""d2llm teach calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from d2llm.cli.options import Format


def calibrate(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="File that d2llm teach score wrote.")],
    labelled: Annotated[Path, typer.Argument(metavar="LABELLED", help="Examples whose pairs are among the scores.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default SCORES.")] = None,
    format: Format = "auto",
) -> None:
    """Fit temperature and threshold to labels, so that a probability of 0.7 is right seven times of ten.

    Positives of LABELLED are relevant, its negatives are not. The header of the scores keeps both numbers and the
    expected calibration error; the scores stay as they are.

    \b
    Example:
      d2llm teach calibrate scores.safetensors labelled.jsonl
    """
    from d2llm.data.importers import read_any
    from d2llm.teacher.calibration import Calibrated, Labelled
    from d2llm.teacher.scores import ScoreTable

    table = ScoreTable.load(scores)
    found = Calibrated.of(Labelled.of(read_any(labelled, format), table))
    table.header["calibration"] = found.header()
    target = out or scores
    table.save(target, table.header.get("dtype", "float32"))
    typer.echo(found)
    temperature = f"data.teacher_temperature={found.calibration.temperature:.3f}"
    typer.echo(f"{target}: the header keeps it; a run takes the temperature by {temperature}")
