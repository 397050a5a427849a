"""Two processes share a run: other batches, the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from d2llm.student import D2LLM

HERE = Path(__file__).parent


def launch(script: str, *arguments: str) -> None:
    """Run a script in two processes."""
    # The launcher finds a free port and keeps it.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [*launcher, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_two_processes_train_one_student(base_model: str, tmp_path: Path) -> None:
    launch("interrupted_run.py", base_model, str(tmp_path), "-1")
    fingerprints = [(tmp_path / f"fingerprint-{rank}").read_text() for rank in (0, 1)]
    assert fingerprints == [D2LLM.from_pretrained(tmp_path).fingerprint()] * 2


def test_what_two_processes_hold_in_shards_is_written_whole(base_model: str, tmp_path: Path) -> None:
    launch("sharded_run.py", base_model, str(tmp_path))
    shards = [load_file(tmp_path / f"shards-{rank}.safetensors") for rank in (0, 1)]
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        written = load_file(folder / "model.safetensors")
        assert written.keys() == shards[0].keys() == D2LLM.from_pretrained(folder).trainable_state().keys()
        for name, value in written.items():
            assert torch.equal(value, torch.cat([shard[name] for shard in shards])), name
