"""A student on the Hugging Face hub: found by its name, and uploaded with a card."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from d2llm.errors import InputError, MissingError
from d2llm.student.card import CARD, model_card

if TYPE_CHECKING:
    from d2llm.student.modeling import D2LLM

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find(
    name: str | os.PathLike[str],
    files: Sequence[str],
    revision: str | None,
    token: bool | str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    """The folder of that name, or one in the hub's cache with some files of the repository of that name.

    Raises:
        MissingError: if there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    missing = f"{os.fspath(name)}: no such folder; expected a student with {' and '.join(files[:2])}"
    if not _NAME.fullmatch(os.fspath(name)):
        raise MissingError(missing)
    try:
        found = snapshot_download(
            os.fspath(name),
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            allow_patterns=list(files),
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise MissingError(f"{missing}, or the name of one on the hub ({why:.200})") from error
    return Path(found)


def push(
    model: "D2LLM",
    repo_id: str,
    *,
    commit_message: str = "Upload a D2LLM student",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    head_dtype: torch.dtype | None = None,
    save_base: bool = False,
    merged: bool = False,
    run: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> str:
    """Upload a student and its card, and return the address of the commit.

    Args:
        model: the student.
        repo_id: ``user/repository``; made where there is none.
        commit_message, private, token, revision, create_pr: as the hub takes them; ``revision`` is a branch.
        head_dtype, save_base, merged: as for ``save_pretrained``.
        run: folder of the run that trained it, for the card.
        results: file that ``d2llm eval --json`` wrote, for the card.
        license: of the student, as the hub names it.

    Raises:
        InputError: if the base lies in a folder of this machine and is not uploaded too.
        MissingError, FormatError: if a file of the run or the results is absent or malformed.
    """
    save_base = save_base or model.config.train_base
    base = model.config.base_model
    if not (save_base or merged) and (os.path.isabs(base) or os.path.isdir(base)):
        raise InputError(
            f"base_model: expected a name that others find it by, got the folder {base}; pass save_base=True or "
            "merged=True to upload it too"
        )
    card = model_card(model.config, repo_id, run, results, license)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, head_dtype=head_dtype, save_base=save_base, merged=merged)
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        )
