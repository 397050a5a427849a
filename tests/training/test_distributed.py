"""Two processes share a run: other batches, the same weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from d2llm.student import D2LLM

HERE = Path(__file__).parent


def test_two_processes_train_one_student(base_model: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "interrupted_run.py"), base_model, str(tmp_path), "-1"]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    prints = [next(line for line in output.splitlines() if line.startswith("rank ")) for output in outputs]
    assert sorted(line.split()[1] for line in prints) == ["0", "1"]
    fingerprints = {line.split()[2] for line in prints}
    assert fingerprints == {D2LLM.from_pretrained(tmp_path).fingerprint()}
