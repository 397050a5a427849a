"""The server under load: many clients at once, for minutes, and what they waited for.

    python -m benchmarks.serving --document

A server on the shipped student and the standard library, as a process of its own; clients that ask one question after
the other: embeddings, searches, or ten passages to re-rank. Then embeddings by a peer: sentence-transformers, behind
the same framework, with the same encoder (:mod:`benchmarks.serving_peer`). Any answer but 200 and 429 ends the
run.

Memory is the server's resident set, a sample a second. It is called flat where a line through the second half of the
samples rises by less than 0.1 % of it a minute, or by less than twice the error of its slope.
"""

import argparse
import asyncio
import importlib.util
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks import corpus
from benchmarks.document import write_table
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
        counted = [kind, rate, p50, p95, p99, str(self.statuses[429])]
        return [*counted, f"{memory[-1] / 2**20:.0f}", f"{grown:+.0f}", trend(memory)]


def trend(memory: list[int]) -> str:
    """What a line through the second half of the samples, one a second, rises by in a minute: MB and its error."""
    half = np.array(memory[len(memory) // 2 :]) / 2**20
    if len(half) < 10:
        return "too short to tell"
    (slope, _), covariance = np.polyfit(np.arange(len(half)) / 60, half, 1, cov=True)
    flat = abs(slope) < max(2 * np.sqrt(covariance[0, 0]), 0.001 * half.mean())
    return f"{slope:+.2f} MB a minute, {'flat' if flat else 'not flat'}"


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


@contextmanager
def _server(*module: str) -> Iterator[tuple[str, int]]:
    """A server's address and process, once it has told where it listens; stopped in the end."""
    with subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert found is not None
            # It was bound before it was told, and accepts in a moment.
            time.sleep(2)
            yield found.group(), process.pid
        finally:
            process.terminate()


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each kind of request, and for the peer")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS)
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out")
    parser.add_argument("--document", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    texts = [pair.query for pair in corpus.pairs()]
    lines = [["request", "a second", "p50", "p95", "p99", "429", "MB", "grown by", "in the second half"]]

    def measure(url: str, process: int, kind: str, name: str) -> None:
        row = asyncio.run(_measure(url, process, kind, texts, options.clients, 60 * options.minutes))
        lines.append([name, *row[1:]])

    with _server("d2llm.cli", "serve", "--port", "0") as (url, process):
        for kind in options.kinds:
            measure(url, process, kind, kind)
    if not options.no_peer and importlib.util.find_spec("sentence_transformers") is not None:
        with _server("benchmarks.serving_peer") as (url, process):
            measure(url, process, "embeddings", "embeddings, sentence-transformers")
    print(aligned(lines))
    if options.document:
        write_table("serving", lines)
    if not options.no_peer and importlib.util.find_spec("sentence_transformers") is None:
        print("without the peer: sentence-transformers is not installed; pip install 'd2llm[st]'")


if __name__ == "__main__":
    main()
