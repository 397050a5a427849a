"""The server under load: many clients at once, for minutes, and what they waited for.

    python -m benchmarks.serving --clients 200 --minutes 5

A server on the shipped student and the standard library, as a process of its own; clients that ask one question
after the other: embeddings, searches, or ten passages to re-rank. Any answer but 200 and 429 ends the run.
Memory is the server's resident set.
"""

import argparse
import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks import corpus
from d2llm_kernels.measure.writing import aligned

_KINDS = ("embeddings", "search", "rerank")


@dataclass
class Load:
    """What the clients of one kind of request saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def row(self, kind: str, elapsed: float, memory: list[int]) -> list[str]:
        """Its line of the table."""
        p50, p95, p99 = (f"{1e3 * each:.0f} ms" for each in np.percentile(self.seconds, (50, 95, 99)))
        grown = (memory[-1] - memory[0]) / 2**20
        rate = f"{len(self.seconds) / elapsed:.1f}"
        return [kind, rate, p50, p95, p99, str(self.statuses[429]), f"{memory[-1] / 2**20:.0f}", f"{grown:+.0f}"]


def _request(kind: str, texts: list[str], chance: random.Random) -> tuple[str, dict[str, object]]:
    query = chance.choice(texts)
    if kind == "embeddings":
        return "/v1/embeddings", {"input": query, "model": "d2llm:query"}
    if kind == "search":
        return "/search", {"query": query, "k": 10}
    return "/rerank", {"query": query, "documents": chance.sample(texts, 10)}


async def _client(url: str, kind: str, texts: list[str], until: float, load: Load, seed: int) -> None:
    chance = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as session:
        while time.monotonic() < until:
            path, body = _request(kind, texts, chance)
            start = time.perf_counter()
            answer = await session.post(path, json=body)
            load.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                load.seconds.append(time.perf_counter() - start)
            else:
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))


async def _watch(process: int, memory: list[int], until: float, kind: str) -> None:
    with tqdm(total=round(until - time.monotonic()), desc=kind, unit="s") as bar:
        while time.monotonic() < until:
            memory.append(resident(process))
            await asyncio.sleep(1)
            bar.update()


def resident(process: int) -> int:
    """Bytes of a process's resident set."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


async def _measure(url: str, process: int, kind: str, texts: list[str], clients: int, seconds: float) -> list[str]:
    load, memory = Load(), [resident(process)]
    await _warm(url, kind, texts)
    memory[:] = [resident(process)]
    start = time.monotonic()
    until = start + seconds
    asking = [_client(url, kind, texts, until, load, seed) for seed in range(clients)]
    await asyncio.gather(_watch(process, memory, until, kind), *asking)
    memory.append(resident(process))
    if strange := {status: count for status, count in load.statuses.items() if status not in (200, 429)}:
        raise SystemExit(f"{kind}: answers other than 200 and 429: {strange}")
    return load.row(kind, time.monotonic() - start, memory)


async def _warm(url: str, kind: str, texts: list[str]) -> None:
    """A few requests first, whose memory stays."""
    await asyncio.gather(*(_client(url, kind, texts, time.monotonic() + 5, Load(), seed) for seed in range(20)))


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each kind of request")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS)
    options = parser.parse_args()
    texts = [pair.query for pair in corpus.pairs()]
    lines = [["request", "a second", "p50", "p95", "p99", "429", "MB", "grown by"]]
    command = [sys.executable, "-m", "d2llm.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+(?=,)", server.stdout.readline())
            assert found is not None
            # It was bound before it was told, and accepts in a moment.
            time.sleep(2)
            for kind in options.kinds:
                seconds = 60 * options.minutes
                lines.append(asyncio.run(_measure(found.group(), server.pid, kind, texts, options.clients, seconds)))
        finally:
            server.terminate()
    print(aligned(lines))


if __name__ == "__main__":
    main()
