"""A hub without a network, in place of ``HfApi``."""

import shutil
from pathlib import Path
from types import SimpleNamespace

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A hub in a folder: what is uploaded to a branch lies in the cache as if it had been downloaded."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.asked: list[tuple[str, object]] = []

    def __call__(self, token: bool | str | None = None) -> "FakeHub":
        self.asked.append(("token", token))
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        self.asked.append(("private", private))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id: str, branch: str, exist_ok: bool) -> None:
        self.asked.append(("branch", branch))

    def upload_folder(self, *, repo_id: str, folder_path: str, revision: str | None, **_: object) -> str:
        repository = self.cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / (revision or "main")).write_text(COMMIT)
        return f"https://hub/{repo_id}/commit/{COMMIT}"
