"""The floor: what the same files cost without a pool. `python -m bench.floor --json`

Round trip: two bare Python processes that answer each other by files and bare inotify (`bench/peer.py`).
Throughput: two bare processes that write, sync and rename the files of a job (its job file and its record, of
the same size), with nobody waiting for anybody.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Measured, Row

PEER = Path(__file__).with_name("peer.py")
MESSAGE_BYTES = 256  # about a job file; its record has about as many


@dataclass(frozen=True)
class Sizes:
    """How many messages and files."""

    rounds: int = 10
    messages: int = 200  # per round
    durable_messages: int = 50
    files: int = 1000  # per round, over both processes


QUICK = Sizes(rounds=1, messages=20, durable_messages=5, files=20)


class Peer:
    """One bare process, and the pipe by which it is told to begin; the pipe rests while it measures."""

    def __init__(self, role: str, directory: Path, *arguments: int) -> None:
        command = [sys.executable, "-I", "-S", str(PEER), role, str(directory), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def begin(self, *numbers: int) -> None:
        """Send the numbers of the next round."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, numbers)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the other process says; RuntimeError when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare process of the floor ended with code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


class PingPong:
    """Two bare processes ready to play; asleep in inotify between rounds."""

    def __init__(self, pinger: Peer) -> None:
        self._pinger = pinger

    def round(self, count: int, *, durable: bool, size: int = MESSAGE_BYTES) -> list[float]:
        """Seconds of each round trip."""
        self._pinger.begin(count, int(durable), size)
        seconds: list[float] = self._pinger.answer()
        return seconds


class Store:
    """Two bare processes ready to write the files of jobs."""

    def __init__(self, peers: list[Peer], directory: Path) -> None:
        self._peers, self._directory = peers, directory

    def round(self, count: int, *, sync: bool, sync_dirs: bool = False) -> float:
        """Jobs per second for `count` jobs. sync: their content; sync_dirs: their names too."""
        share = max(1, count // len(self._peers))
        for peer in self._peers:
            peer.begin(share, 2 if sync_dirs else int(sync))
        slowest = max(float(peer.answer()) for peer in self._peers)
        for name in ("ready", "out"):
            for path in (self._directory / name).iterdir():
                path.unlink()
        return share * len(self._peers) / slowest


@contextlib.contextmanager
def ping_pong(place: Path) -> Iterator[PingPong]:
    """Two processes that hand files to each other, for the time of the ``with`` block."""
    with _rooms(place, "tmp", "ping", "pong") as directory:
        peers: list[Peer] = []
        try:
            peers.append(Peer("pong", directory))
            peers.append(Peer("ping", directory))
            yield PingPong(peers[1])
        finally:
            for peer in peers:
                peer.end()


@contextlib.contextmanager
def store(place: Path, job_bytes: int, result_bytes: int) -> Iterator[Store]:
    """Two processes that write and read files of a job and of a result, for the time of the ``with`` block."""
    with _rooms(place, "tmp", "ready", "out") as directory:
        peers: list[Peer] = []
        try:
            peers.append(Peer("store", directory, job_bytes, result_bytes))
            peers.append(Peer("store", directory, job_bytes, result_bytes))
            yield Store(peers, directory)
        finally:
            for peer in peers:
                peer.end()


@contextlib.contextmanager
def _rooms(place: Path, *names: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="floor-", dir=place) as text:
        directory = Path(text)
        for name in names:
            (directory / name).mkdir()
        yield directory


def measure(sizes: Sizes, place: Path) -> Measured:
    """Milliseconds of a bare round trip through files, and files per second."""
    plain: list[float] = []
    durable: list[float] = []
    rates: dict[str, list[float]] = {"files_per_s": [], "durable_files_per_s": [], "durable_names_per_s": []}
    with ping_pong(place) as game, store(place, MESSAGE_BYTES, MESSAGE_BYTES) as files:
        game.round(sizes.messages, durable=False)
        count = sizes.files
        for number in range(sizes.rounds):
            harness.in_turn(
                number,
                lambda: plain.extend(game.round(sizes.messages, durable=False)),
                lambda: durable.extend(game.round(sizes.durable_messages, durable=True)),
                lambda: rates["files_per_s"].append(files.round(count, sync=False)),
                lambda: rates["durable_files_per_s"].append(files.round(count, sync=True)),
                lambda: rates["durable_names_per_s"].append(files.round(count, sync=True, sync_dirs=True)),
            )
    quick, safe = harness.percentiles(plain), harness.percentiles(durable)
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    rows = [
        Row("round trip", harness.ms(quick["p50_ms"]), f"p99 {harness.ms(quick['p99_ms'])}"),
        Row("round trip, durable", harness.ms(safe["p50_ms"]), f"p99 {harness.ms(safe['p99_ms'])}"),
        Row("job and record: write, rename", f"{medians['files_per_s']} /s", "two processes"),
        Row("job and record: write, sync, rename", f"{medians['durable_files_per_s']} /s", "two processes"),
        Row("… and sync the directories", f"{medians['durable_names_per_s']} /s", "two processes"),
    ]
    return Measured("floor", {**quick, "durable": safe, **medians}, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
