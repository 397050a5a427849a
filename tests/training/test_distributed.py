"""Two processes share a run: other batches, the same weights."""

import os
import re
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
    # Both write to one pipe, and progress bars end no line.
    prints = re.findall(r"rank (\d) (\w+)", done.stdout)
    assert sorted(rank for rank, _ in prints) == ["0", "1"], done.stdout
    assert {fingerprint for _, fingerprint in prints} == {D2LLM.from_pretrained(tmp_path).fingerprint()}
