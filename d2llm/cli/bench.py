"""d2llm bench."""

from pathlib import Path
from typing import Annotated

import typer

PARTS = ("pool", "pma", "score", "topk", "loss")


def bench(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"What to time: {', '.join(PARTS)}; all by default.")
    ] = None,
    batch: Annotated[int, typer.Option(help="B: texts to pool, and the batch of the losses.")] = 32,
    length: Annotated[int, typer.Option(help="L: tokens of a text.")] = 256,
    dim: Annotated[int, typer.Option(help="D: width of the decoder.")] = 1024,
    heads: Annotated[int, typer.Option(help="H: heads of PMA; must divide D.")] = 16,
    hidden: Annotated[int, typer.Option(help="F: hidden width of IEM.")] = 512,
    queries: Annotated[int, typer.Option(help="Nq: queries scored at once.")] = 1,
    passages: Annotated[int, typer.Option(help="Np: passages they are scored against.")] = 100_000,
    k: Annotated[int, typer.Option(help="Passages kept of each query.")] = 100,
    hard: Annotated[int, typer.Option(help="K: hard negatives of a query in the losses.")] = 8,
    kind: Annotated[str, typer.Option(help="Texts to pool: whole (no padding), masked or packed (ragged).")] = "whole",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    forward: Annotated[bool, typer.Option("--forward", help="Forward passes only.")] = False,
    literal: Annotated[bool, typer.Option(help="Also time the paper's formulas taken literally.")] = True,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also time those under torch.compile.")] = False,
    seconds: Annotated[float, typer.Option(help="Time for the runs of one line.")] = 0.5,
    json: Annotated[Path | None, typer.Option(help="Keep all figures in this file.")] = None,
) -> None:
    """Time the kernels at your own shapes: every backend against this machine's limits and the literal form.

    Results are held against the reference first; what is wrong is shown as FAILING and not timed.

    \b
    d2llm bench pool --dim 2048 --heads 32 --batch 8 --length 512 --dtype bfloat16
    d2llm bench topk --passages 1000000 --json topk.json
    """
    import torch
    from tqdm import tqdm

    from d2llm.cli.options import torch_dtype
    from d2llm.files import write_json
    from d2llm_kernels.measure import writing
    from d2llm_kernels.measure.run import Shapes, chosen_cases, run
    from d2llm_kernels.measure.timing import GpuTimer, Timer

    shapes = Shapes(batch, length, dim, heads, hidden, queries, passages, k, hard, kind)
    cases = chosen_cases(parts or PARTS, shapes, torch_dtype(dtype), forward, literal, compiled)
    timer = GpuTimer(seconds) if torch.cuda.is_available() else Timer(seconds, fewest=3, most=200)
    with tqdm(total=sum(len(case.variants(timer.device)) for case in cases), desc="bench", unit="line") as bar:
        report = run(cases, timer, bar.update)
    typer.echo(writing.machine_line(report))
    typer.echo(writing.ceilings_line(report["ceilings"]) + "\n")
    typer.echo(writing.aligned(writing.table(report["rows"], without=("host",))))
    typer.echo("\n" + "\n".join(writing.LEGEND))
    if json:
        write_json(json, report)
    if any("failure" in found for row in report["rows"] for found in row["variants"].values()):
        raise typer.Exit(1)
