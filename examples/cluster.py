"""Several machines on this one: a server, three nodes with different engines, and a client that uses them.

    python examples/cluster.py            # or: make demo-cluster

Node `a` transcribes, `b` lip-syncs, `c` animates pictures and transcribes. Each is what it would be on a machine of its
own: a folder with a config.json and a spool, an agent, a supervisor, workers. Recordings, the picture and the videos
travel by the server; the client sees neither folder nor spool of a node. `lipsync` gets the video of `portrait`,
wherever that was made. Everything that was started ends with the program, also on Ctrl-C. The same by hand:

    python -m pool.cluster server
    python -m pool.cluster node --server nats://127.0.0.1:4222          # on each node, beside its config.json
    python -m pool.submit transcribe audio=talk.flac --config nats://127.0.0.1:4222
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

from pool import FilePool  # noqa: E402
from pool.cli.terminal import make_console  # noqa: E402
from pool.client.future import JobFuture  # noqa: E402
from pool.runfiles.server import supervisor_identity  # noqa: E402

SPEECH, PICTURE = HERE / "speech", HERE / "portrait" / "mona_lisa.jpg"
NODES = {"a": ("transcribe",), "b": ("lipsync",), "c": ("portrait", "transcribe")}
LOAD_S, END_S = 180.0, 30.0


def main() -> int:
    options = argparse.ArgumentParser(description="Three nodes, a server and a client on this machine.")
    options.add_argument("--short", action="store_true", help="one recording, one second of video")
    options.add_argument("--output", type=Path, default=ROOT / "demo", help="folder for what is made")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="filepool-cluster-") as folder:
            return demonstrate(Path(folder), chosen.output.absolute(), short=chosen.short)
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        return 130


def demonstrate(folder: Path, made: Path, *, short: bool) -> int:
    """Start a cluster in a folder, use it, end it."""
    made.mkdir(parents=True, exist_ok=True)
    os.environ["FILEPOOL_BRANCHES"] = str(folder / "branches")
    began = time.monotonic()
    print("Starting a server and three nodes, each loads its own models …", flush=True)
    with cluster(folder) as address, FilePool(address) as pool:
        wait_for_nodes(pool)
        print(f"Ready after {time.monotonic() - began:.1f} s", flush=True)
        show(submit(pool, made, short=short))
    print(f"{time.monotonic() - began:.1f} s in all, start and end included. Everything that was started has ended.")
    return 0


def submit(pool: FilePool, made: Path, *, short: bool) -> dict[JobFuture, str]:
    """Jobs for all nodes at once; the last one waits for the video of another."""
    small: dict[str, Any] = {"frames_num": 25, "keep": "crop", "size": 256} if short else {}
    animated = pool.submit(
        "portrait",
        image=str(PICTURE),
        audio=str(SPEECH / "address.flac"),
        output=str(made / "cluster-portrait.mp4"),
        **small,
    )
    spoken = pool.submit(
        "lipsync",
        video=animated["output"],
        audio=str(SPEECH / "reading.flac"),
        output=str(made / "cluster-talking.mp4"),
        digital_auth=1,
    )
    jobs = {animated: "mona_lisa.jpg, address.flac", spoken: "that video, reading.flac"}
    for name in ("address", "reading", "two_speakers")[: 1 if short else None]:
        text = made / f"cluster-{name}.srt"
        jobs[pool.submit("transcribe", audio=str(SPEECH / f"{name}.flac"), output=str(text))] = f"{name}.flac"
    return jobs


def show(jobs: dict[JobFuture, str]) -> None:
    """A bar for each job while it runs, then who has done what."""
    console = make_console()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"))
    try:
        with Progress(*columns, TextColumn("{task.fields[status]}"), TimeElapsedColumn(), console=console) as bars:
            lines = {}
            for job, about in jobs.items():
                lines[job] = bars.add_task(f"{job.engine:<10} {about:<28}", total=100.0, status="queued")
            while lines:
                for job, line in list(lines.items()):
                    word = job.status()
                    if job.done():
                        bars.update(line, completed=100.0, status=word.status)
                        bars.stop_task(line)
                        del lines[job]
                    else:
                        bars.update(line, completed=word.percent, status=word.status)
                time.sleep(0.1)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    table = Table("engine", "input", "node/worker", "seconds", "file", box=None, pad_edge=False, header_style="bold")
    for job, about in jobs.items():
        result, record = job.result(), job.record
        assert record is not None
        file = Path(result["output"])
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        seconds = f"{(record.finished - record.started) / 1e6:.1f}"
        table.add_row(job.engine, about, record.worker, seconds, f"{shown} ({file.stat().st_size / 1e3:.0f} kB)")
    console.print(table)


# ---- processes


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """The address of a server with three nodes; all of them have ended afterwards."""
    port, monitor = free_ports(2)
    address = f"nats://127.0.0.1:{port}"
    spools = [folder / name / "spool" for name in NODES]
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            process(folder / "server.log", "server", "--store", str(folder / "nats"), f"--port={port}",
                    f"--monitor={monitor}")
        )  # fmt: skip
        await_port(port, folder / "server.log")
        stack.callback(ended, spools, folder / "branches")
        for name, engines in NODES.items():
            config = folder / name / "config.json"
            config.parent.mkdir()
            config.write_text(json.dumps(node(name, engines, address), indent=2))
            stack.enter_context(process(folder / f"{name}.log", "node", "--config", str(config)))
        yield address


def node(name: str, engines: tuple[str, ...], address: str) -> dict[str, Any]:
    """The configuration of one node: engines as the config.json of this repository has them, one worker each."""
    known = json.loads((ROOT / "config.json").read_text())["engines"]
    chosen = {engine: {**known[engine], "max_concurrent_tasks": 1} for engine in engines}
    return {"spool": "spool", "cluster": {"servers": [address], "name": name}, "engines": chosen}


@contextlib.contextmanager
def process(log: Path, *words: str) -> Iterator[None]:
    """A command of `python -m pool.cluster`. It ends on SIGTERM; a session of its own keeps Ctrl-C from it."""
    child = None
    try:
        with open(log, "wb") as file, undisturbed():
            child = subprocess.Popen(
                [sys.executable, "-m", "pool.cluster", *words],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        yield
        if child.poll() is not None:
            raise SystemExit(f"{words[0]} ended by itself:\n{log.read_text(errors='replace')}")
    finally:
        if child is not None:
            end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, twice; then end it."""
    for seconds in (END_S, 5.0):
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return
    child.kill()
    child.wait()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait. RACE: in the middle of `Popen` the child runs and nobody knows it."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def ended(spools: list[Path], branches: Path) -> None:
    """Wait for the supervisors of the nodes and for the port of the client: they end with who has started them."""
    deadline = time.monotonic() + END_S
    for spool in (*spools, *branches.glob("*/spool")):
        identity = supervisor_identity(spool / "run" / "supervisor.json")
        while identity is not None and identity.alive():
            if time.monotonic() > deadline:
                os.kill(identity.pid, signal.SIGTERM)
                deadline += 1.0
            time.sleep(0.02)


def await_port(port: int, log: Path) -> None:
    """Until the server listens."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.05)
    raise SystemExit(f"the server has not started:\n{log.read_text(errors='replace')}")


def wait_for_nodes(pool: FilePool) -> None:
    """Until each node has a worker with its models loaded, for each of its engines."""
    deadline = time.monotonic() + LOAD_S
    wanted = {(name, engine) for name, engines in NODES.items() for engine in engines}
    while time.monotonic() < deadline:
        there = pool.status().nodes
        serving = {(one.name, engine) for one in there for engine, about in one.engines.items() if about["serving"]}
        if wanted <= serving:
            return
        time.sleep(0.1)
    troubles = [f"{one.name}/{engine}: {about['trouble']}" for one in there for engine, about in one.engines.items()]
    raise SystemExit(f"not all nodes serve after {LOAD_S:.0f} s; `python -m pool doctor` may know why: {troubles}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


if __name__ == "__main__":
    sys.exit(main())
