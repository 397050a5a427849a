"""A student's card for the hub, filled from its run and from its evaluation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from d2llm.errors import FormatError
from d2llm.files import read_json
from d2llm.student.configuration import D2LLMConfig

CARD = "README.md"
_PAPER = "[D2LLM (Liao et al., ACL 2024)](https://arxiv.org/abs/2406.17262)"
#: Fields of a student that a reader of its card wants to know.
_TOLD = ("num_layers", "hidden_layer", "lora_r", "train_base", "iem_hidden", "query_length", "passage_length")


def model_card(
    config: D2LLMConfig,
    repo_id: str,
    run: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> str:
    """The text of a card: what the student is, how to use it, what it was trained on, how good it is.

    Files are named without their folders.

    Args:
        config: of the student.
        repo_id: where it will be found.
        run: folder of the run that trained it.
        results: file that ``d2llm eval --json`` wrote.
        license: as the hub names it.

    Raises:
        MissingError: if the run's settings or the results are not there.
        FormatError: if they are malformed.
    """
    about = ModelCardData(
        base_model=config.base_model if _is_on_hub(config.base_model) else None,
        library_name="d2llm",
        license=license,
        pipeline_tag="sentence-similarity",
        tags=["d2llm", "sentence-similarity", "feature-extraction", "text-ranking"],
    )
    parts = [f"---\n{about.to_yaml()}\n---", f"# {repo_id.rpartition('/')[2]}", _what(config), _use(repo_id)]
    parts += [] if run is None else [_training(Path(run))]
    parts += [] if results is None else [_evaluation(Path(results))]
    return "\n\n".join(parts) + "\n"


def _is_on_hub(base: str) -> bool:
    return base.count("/") == 1 and not os.path.exists(base) and ":" not in base


def _what(config: D2LLMConfig) -> str:
    fields = [f"| base | {_name(config.base_model)} |", *(f"| {name} | {getattr(config, name)} |" for name in _TOLD)]
    table = "\n".join(["| field | value |", "| --- | --- |", *fields])
    return (
        f"A student of {_PAPER}: a decoder whose tokens are pooled by attention (PMA), and a small network (IEM) that "
        f"scores a query's vector against a passage's.\n\n{table}"
    )


def _use(repo_id: str) -> str:
    return f"""## Use

```python
from d2llm import D2LLM

model = D2LLM.from_pretrained("{repo_id}")
model.rank("a question", ["a passage that answers it", "another passage"])
```"""


def _training(run: Path) -> str:
    """What the run's own files say of data, teacher, losses and outcome."""
    # Imported here: a student is loaded without what trains one.
    from d2llm.training.run import OUTCOME, SETTINGS

    settings = read_json(run / SETTINGS)
    try:
        data, loss, optimizer = settings["data"], settings["loss"], settings["optimizer"]
        lines = [
            f"- examples: {_names(data['train'])}; {data['negatives']} hard negatives each",
            f"- teacher: {_teacher(data)}",
            f"- losses: {', '.join(f'{name} {value}' for name, value in loss.items())}",
            f"- learning rates: IEM {optimizer['lr']}, PMA {optimizer['pma_lr']}, LoRA {optimizer['lora_lr']}",
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{run / SETTINGS}: not the settings of a run ({error!r:.200})") from None
    if (run / OUTCOME).is_file():
        outcome = read_json(run / OUTCOME)
        if isinstance(outcome, dict) and isinstance(outcome.get("mrr"), float):
            lines.append(f"- validation MRR: {outcome['mrr']:.4f} at step {outcome.get('step')}")
    return "\n".join(["## Training", "", *lines])


def _teacher(data: Mapping[str, Any]) -> str:
    """The teacher by its model's name, where the run asked for one, and the files of its scores."""
    if data["teacher"] is None:
        return "none but what the examples carry"
    model = data["teacher_header"].get("model")
    return ("" if model is None else f"{_name(model)}, ") + f"scores in {_names(data['teacher'])}"


def _name(model: str) -> str:
    """A model's name, without the folder of one that lies on this machine."""
    return os.path.basename(os.path.normpath(model)) if os.path.isabs(model) or os.path.isdir(model) else model


def _names(files: Any) -> str:
    """The names of one file, several, or those of each task, without their folders."""
    if isinstance(files, Mapping):
        return "; ".join(f"{task}: {_names(those)}" for task, those in files.items())
    return os.path.basename(files) if isinstance(files, str) else ", ".join(map(_names, files))


def _evaluation(results: Path) -> str:
    # Imported here: a student is loaded without what evaluates one.
    from d2llm.evaluation.compare import Comparison

    return f"## Evaluation\n\n{Comparison.read(results).to_markdown()}"
