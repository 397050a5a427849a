"""d2llm teach: tune, score, collect, calibrate, label."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2llm.cli.calibrate import calibrate
from d2llm.cli.endpoint import (
    Check,
    Concurrency,
    Endpoint,
    Prompts,
    Retries,
    Timeout,
    TokenFile,
    TokenizerName,
    TopLogprobs,
    check_sample,
    endpoint_teacher,
)
from d2llm.cli.failures import GuardedGroup
from d2llm.cli.label import label
from d2llm.cli.options import (
    Adapter,
    Dtype,
    Format,
    NumLayers,
    Seed,
    Task,
    Templates,
    load_teacher,
    of_task,
    or_shipped,
    read_passages,
)
from d2llm.errors import InputError
from d2llm.shipped import BASE_MODEL

if TYPE_CHECKING:
    from d2llm.teacher.scores import ScoreTable
    from d2llm.teacher.scoring import Judge

#: In a shards folder: the names of all shards that make up the table.
PLAN = "plan.json"

app = typer.Typer(
    cls=GuardedGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Tune an LLM to judge, score pairs with it, and label queries by it.",
)

app.command()(calibrate)
app.command()(label)

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Examples.")]


@app.command()
def tune(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the adapter comes to OUT/adapter.")],
    corpus: Annotated[
        Path | None, typer.Option(help="Passages to draw negatives from; by default those of DATA.")
    ] = None,
    own_negatives: Annotated[
        bool, typer.Option("--own-negatives", help="Use the negatives in DATA; all examples need as many.")
    ] = False,
    hard: Annotated[int, typer.Option(help="Negatives of a group from BM25's best.")] = 2,
    easy: Annotated[int, typer.Option(help="Random negatives of a group.")] = 1,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Tuned teacher to go on from: a folder, or shipped; without it, from the plain LLM."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Causal LLM: a folder, a hub name or pypi:PACKAGE; by default the adapter's, or {BASE_MODEL}."
        ),
    ] = None,
    num_layers: NumLayers = None,
    dtype: Dtype = "float32",
    template: Templates = None,
    query_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a query; by default 64, or the adapter's.")
    ] = None,
    passage_length: Annotated[
        int | None, typer.Option(help="Tokens kept of a passage; by default 192, or the adapter's.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 600,
    groups_per_step: Annotated[int, typer.Option(help="Groups of a positive and its negatives in a step.")] = 6,
    task: Task = None,
    learning_rate: Annotated[float, typer.Option(help="Peak, reached after the warm-up.")] = 4e-4,
    lora_r: Annotated[int, typer.Option(help="Rank of LoRA; an adapter keeps its own.")] = 16,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = True,
    seed: Seed = 0,
    format: Format = "auto",
) -> None:
    """Teach an LLM to judge, by LoRA.

    It learns from groups of one positive and several negatives.

    A small LLM judges no better than chance before this, and takes some hundred steps to begin: --adapter shipped
    starts from one that judges Python functions. Called again, it goes on from the last checkpoint.

    \b
    Examples:
      d2llm teach tune train.jsonl --out teacher
      d2llm teach tune train.jsonl --out teacher --adapter shipped --own-negatives --steps 200
      d2llm teach tune train.jsonl --out teacher --model Qwen/Qwen2.5-0.5B --num-layers 16 --dtype bfloat16
      d2llm teach tune train.jsonl --out teacher --template my-template.yaml
      d2llm teach tune train.jsonl --out sym-teacher --task sym
    """
    from d2llm.data.importers import read_any
    from d2llm.teacher.groups import make_groups
    from d2llm.teacher.tuning import TuningConfig
    from d2llm.teacher.tuning import tune as run

    examples = of_task(read_any(data, format), task)
    if not own_negatives:
        # Passages of the other task would be no negatives to learn from.
        by_task = [of_task(examples, each) for each in sorted({example.task for example in examples})]
        examples = [
            group
            for each in by_task
            for group in make_groups(each, read_passages(corpus, each), hard=hard, easy=easy, seed=seed)
        ]
    lora = {"lora_r": lora_r, "lora_alpha": 2 * lora_r}
    config = TuningConfig(steps, groups_per_step, learning_rate, seed=seed, save_steps=save_steps, bf16=bf16, **lora)
    adapter = or_shipped(adapter, "teacher")
    if adapter is None and model is None:
        model = BASE_MODEL
    teacher = load_teacher(model, adapter, template, num_layers, dtype, query_length, passage_length)
    run(teacher, examples, out, config)
    following = ["d2llm", "teach", "score", str(data), "--adapter", str(out), "--out", f"{out / 'scores.safetensors'}"]
    for name, value, default in (("--task", task, None), ("--dtype", dtype, "float32"), ("--format", format, "auto")):
        following += [name, value] if value and value != default else []
    typer.echo(f"{out / 'adapter'}: the adapter; next: {shlex.join(following)}")


@app.command()
def score(
    data: Data,
    out: Annotated[Path, typer.Option(help="File for the scores (.safetensors).")],
    adapter: Adapter = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Causal LLM: a folder, a hub name or pypi:PACKAGE; by default the adapter's, or " + BASE_MODEL + "."
        ),
    ] = None,
    num_layers: NumLayers = None,
    dtype: Dtype = "float32",
    template: Templates = None,
    task: Task = None,
    shards_dir: Annotated[Path | None, typer.Option(help="Folder for finished parts; by default OUT.shards.")] = None,
    shard: Annotated[int, typer.Option(help="Number of this process, from 0.")] = 0,
    num_shards: Annotated[int, typer.Option(help="How many processes share the work.")] = 1,
    in_batch: Annotated[
        bool,
        typer.Option("--in-batch", help="Also score the pairs that will meet in a batch (pairwise rank imitation)."),
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Run whose seed, batch size and length --in-batch follows; options below win.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="run.seed of the run.  [default: 0]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="run.batch_size of the run.  [default: 32]")] = None,
    epochs: Annotated[float | None, typer.Option(help="run.epochs of the run.  [default: 5]")] = None,
    max_steps: Annotated[int | None, typer.Option(help="run.max_steps of the run; wins over --epochs.")] = None,
    world_size: Annotated[int, typer.Option(help="Processes that will train.")] = 1,
    format: Format = "auto",
    endpoint: Endpoint = None,
    tokenizer: TokenizerName = None,
    prompts: Prompts = "tokens",
    top_logprobs: TopLogprobs = 20,
    concurrency: Concurrency = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 6,
    token_file: TokenFile = None,
    check: Check = 0,
) -> None:
    """Judge every example's positive and negatives.

    Once is enough for any number of training runs.

    What is finished is kept: a call that was stopped goes on where it was, and several processes or
    machines share the work by --shard and --num-shards over one folder.

    \b
    Examples:
      d2llm teach score train.jsonl --adapter teacher --out scores.safetensors
      d2llm teach score train.jsonl --adapter teacher --out scores.safetensors --in-batch --config run.yaml
      d2llm teach score train.jsonl --adapter teacher --out scores.safetensors --shard 1 --num-shards 4
      d2llm teach score train.jsonl --out scores.safetensors --endpoint http://127.0.0.1:8000/v1 --model your/llm
    """
    from d2llm.cli.batches import in_batch_work, run_of
    from d2llm.data.importers import read_any
    from d2llm.teacher.scoring import plan_groups
    from d2llm.teacher.scoring import score as run

    examples = read_any(data, format)
    work = list(plan_groups(of_task(examples, task)))
    if in_batch:
        settings = run_of(config, seed=seed, batch_size=batch_size, epochs=epochs, max_steps=max_steps)
        # The batches are those of the whole file.
        work += [each for each in in_batch_work(examples, *settings, world_size) if task in (None, each.task)]
    folder = shards_dir or out.with_name(out.name + ".shards")
    teacher: Judge
    if endpoint is None:
        teacher = load_teacher(model or (BASE_MODEL if adapter is None else None), adapter, template, num_layers, dtype)
    elif adapter is not None or num_layers is not None:
        raise InputError("--adapter, --num-layers: expected neither with --endpoint, which runs an LLM as it is")
    else:
        teacher = endpoint_teacher(
            endpoint,
            model,
            tokenizer,
            template,
            folder,
            prompts=prompts,
            top_logprobs=top_logprobs,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            token_file=token_file,
            shard=shard,
        )
    files = run(teacher, work, folder, shard=shard, num_shards=num_shards)
    fresh = [f"base_model={BASE_MODEL}", "output_dir=student"]
    start = [*(fresh if config is None else [str(config)]), f"data.train={data}", f"data.teacher={out}"]
    table = _finish(files, folder, out, shlex.join(["d2llm", "train", *start]))
    if check and endpoint is not None and table is not None:
        typer.echo(check_sample(table, work, tokenizer or model or BASE_MODEL, template, check))


@app.command()
def collect(
    shards_dir: Annotated[Path, typer.Argument(help="Folder that d2llm teach score filled.")],
    out: Annotated[Path, typer.Option(help="File for the scores (.safetensors).")],
    dtype: Annotated[str, typer.Option(help="Number type on disk: float32, or float16 for half the size.")] = "float32",
) -> None:
    """Put finished parts together.

    Such as those that several machines made.

    \b
    Example:
      d2llm teach collect scores.safetensors.shards --out scores.safetensors --dtype float16
    """
    from d2llm.files import read_json
    from d2llm.teacher.scoring import collect as gather

    table = gather([shards_dir / name for name in read_json(shards_dir / PLAN)])
    table.save(out, dtype)
    typer.echo(f"{out}: {len(table)} scored pairs")


def _finish(files: list[Path], folder: Path, out: Path, following: str) -> "ScoreTable | None":
    """Write and return the table if every part is there, and else say what is left."""
    from d2llm.files import write_json
    from d2llm.teacher.scoring import collect

    write_json(folder / PLAN, [file.name for file in files])
    missing = sum(not file.exists() for file in files)
    if missing:
        typer.echo(
            f"{folder}: {missing} of {len(files)} parts are left to the other processes; the last one writes {out}"
        )
        return None
    table = collect(files)
    table.save(out)
    typer.echo(f"{out}: {len(table)} scored pairs; next: {following}")
    return table
