"""Two processes share a run: other batches, the same weights."""

import os
import subprocess
import sys
from pathlib import Path

from d2llm.student import D2LLM

HERE = Path(__file__).parent


def test_two_processes_train_one_student(base_model: str, tmp_path: Path) -> None:
    # The launcher finds a free port and keeps it.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(HERE / "interrupted_run.py"), base_model, str(tmp_path), "-1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    fingerprints = [(tmp_path / f"fingerprint-{rank}").read_text() for rank in (0, 1)]
    assert fingerprints == [D2LLM.from_pretrained(tmp_path).fingerprint()] * 2
