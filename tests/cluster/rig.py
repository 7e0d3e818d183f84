"""Real nats-servers on free loopback ports: killed, stopped, started again, with or without what they stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nats.errors import Error as NatsError
from nats.js.errors import KeyDeletedError, KeyNotFoundError
from scenarios.world import PATIENCE_S, wait_until

from pool.cluster import topology
from pool.cluster.nats_server import LOOPBACK, Passwords, Peers, Settings, Tls, configuration, healthy, program
from pool.cluster.topology import DAY_S, ensure


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


class Servers:
    """`count` nats-servers, one or three, that form a cluster. sync: what is acknowledged is on the disk (slow).

    with Servers(tmp_path) as servers: `servers.url` is for clients, `servers.urls` one each.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 1,
        *,
        sync: bool = False,
        passwords: Passwords | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.folder, self.count = folder, count
        ports = free_ports(3 * count)
        self.ports, self.monitors, routes = ports[:count], ports[count : 2 * count], ports[2 * count :]
        self.settings = [
            Settings(
                store=folder / f"store{index}",
                port=self.ports[index],
                monitor=self.monitors[index],
                name=f"server{index}",
                max_store_mb=4000,
                max_memory_mb=512,
                sync=sync,
                passwords=passwords,
                tls=tls,
                peers=Peers(LOOPBACK, routes[index], tuple(f"{LOOPBACK}:{port}" for port in routes), password="routes")
                if count > 1
                else None,
            )
            for index in range(count)
        ]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def urls(self) -> list[str]:
        """The address of each."""
        return [f"{'tls' if one.tls else 'nats'}://{LOOPBACK}:{one.port}" for one in self.settings]

    @property
    def url(self) -> str:
        """All of them, as FilePool and the commands take them."""
        return ",".join(self.urls)

    def start(self, *indices: int, wipe: bool = False, wait: bool = True) -> None:
        """Start these, or all that do not run. wipe: without what they stored. wait: until they serve."""
        chosen = indices or tuple(index for index in range(self.count) if not self.running(index))
        for index in chosen:
            assert not self.running(index), f"server {index} runs already"
            settings = self.settings[index]
            if wipe:
                shutil.rmtree(settings.store, ignore_errors=True)
            settings.store.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / f"server{index}.conf"
            path.write_text(configuration(settings))
            with open(self._log(index), "ab") as log:
                self._processes[index] = subprocess.Popen(
                    [program(), "-c", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        if wait:
            for index in chosen:
                self.wait(index)

    def wait(self, index: int, seconds: float = PATIENCE_S) -> None:
        """Until it serves and knows a leader."""

        def serves() -> bool:
            assert self.running(index), f"server {index} ended\n{self.log(index)}"
            return healthy(LOOPBACK, self.monitors[index])

        try:
            wait_until(serves, f"server {index} that serves", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log(index)}") from None

    def running(self, index: int) -> bool:
        """Whether its process lives."""
        process = self._processes.get(index)
        return process is not None and process.poll() is None

    def kill(self, *indices: int) -> None:
        """kill -9 of these, or all."""
        for index in indices or range(self.count):
            process = self._processes[index]
            process.kill()
            process.wait(PATIENCE_S)

    def stop(self, *indices: int) -> None:
        """SIGSTOP: they keep their connections and say nothing."""
        for index in indices or range(self.count):
            self._processes[index].send_signal(signal.SIGSTOP)

    def go_on(self, *indices: int) -> None:
        """SIGCONT."""
        for index in indices or range(self.count):
            self._processes[index].send_signal(signal.SIGCONT)

    def restart(self, *indices: int, wipe: bool = False) -> None:
        """kill -9 and start."""
        chosen = indices or tuple(range(self.count))
        self.kill(*chosen)
        self.start(*chosen, wipe=wipe)

    def leader(self, stream: str) -> int:
        """Which of them leads a stream ("FILEPOOL_JOBS", "KV_filepool_results")."""

        def lead() -> str:
            for index in range(self.count):
                if self.running(index):
                    with contextlib.suppress(OSError, ValueError):
                        for found in self._streams(index):
                            if found["name"] == stream and found.get("cluster", {}).get("leader"):
                                return str(found["cluster"]["leader"])
            return ""

        if self.count == 1:
            return 0
        return int(wait_until(lead, f"a leader of {stream}").removeprefix("server"))

    async def ensure(self, **settings: Any) -> None:
        """Create streams and buckets, as `admin` where there are passwords."""
        given = {"replicas": min(self.count, 3), "max_waiting": 100_000, "result_s": 86_400.0, "lease_s": 5.0}
        async with self.connected("admin") as client:
            await ensure(client.jetstream(), **{**given, **settings})
        await self.settled()

    async def settled(self) -> None:
        """Until every server knows where to send what is for a stream: it hears from the others after they have
        created it, and says "no responders" before."""
        for index in range(self.count) if self.count > 1 else ():
            async with self.connected("admin", index) as client:
                js = client.jetstream()
                for config in topology.streams(replicas=1, max_waiting=1, result_s=DAY_S, lease_s=DAY_S):
                    subject = str((config.subjects or [""])[0]).replace(">", "a")
                    await self._known(js, subject)

    async def _known(self, js: Any, subject: str) -> None:
        for _ in range(200):
            try:
                await topology.may_publish(js, subject)
            except (NatsError, asyncio.TimeoutError):
                await asyncio.sleep(0.1)
            else:
                return
        raise AssertionError(f"nobody takes {subject}\n{self.log()}")

    async def purge(self) -> None:
        """Remove all that is stored; streams and consumers go, too, and are made again."""
        async with self.connected("admin") as client:
            js = client.jetstream()
            for info in await js.streams_info():
                await js.delete_stream(info.config.name or "")
        await self.ensure()

    @contextlib.asynccontextmanager
    async def connected(self, user: str = "", index: int | None = None, **options: Any) -> Any:
        """A connection of nats-py, to one of them or to all. user: where there are passwords."""
        import nats

        passwords = self.settings[0].passwords
        if passwords is not None and user:
            options = {"user": user, "password": getattr(passwords, user), **options}
        servers = self.urls if index is None else [self.urls[index]]
        client = await nats.connect(servers, **{"connect_timeout": 5, **options})
        try:
            yield client
        finally:
            with contextlib.suppress(TypeError):  # nats-py and asyncio of 3.12 … 3.13.5, when the servers are away
                await client.close()

    def log(self, *indices: int) -> str:
        """The end of their logs."""
        texts = []
        for index in indices or range(self.count):
            with contextlib.suppress(FileNotFoundError):
                lines = self._log(index).read_text(errors="replace").splitlines()[-40:]
                texts.append(f"--- server {index}\n" + "\n".join(lines))
        return "\n".join(texts)

    def whole_log(self) -> str:
        """The logs of all, whole."""
        paths = [self._log(index) for index in range(self.count)]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def close(self) -> None:
        """End all of them."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()  # also one that is stopped
                process.wait(PATIENCE_S)
        self._processes = {}

    def _streams(self, index: int) -> Iterator[dict[str, Any]]:
        address = f"http://{LOOPBACK}:{self.monitors[index]}/jsz?streams=true&accounts=true"
        with urllib.request.urlopen(address, timeout=5) as answer:
            for account in json.load(answer).get("account_details", ()):
                yield from account.get("stream_detail", ())

    def _log(self, index: int) -> Path:
        return self.folder / f"server{index}.log"


async def keys(js: Any, bucket: str) -> list[str]:
    """The keys of a bucket that have a value; `KeyValue.keys` of nats-py may end before the first one."""
    values = await js.key_value(bucket)
    state = (await js.stream_info(f"KV_{bucket}", subjects_filter=">")).state
    found = []
    for subject in state.subjects or {}:
        key = subject.removeprefix(f"$KV.{bucket}.")
        with contextlib.suppress(KeyNotFoundError, KeyDeletedError):
            await values.get(key)
            found.append(key)
    return found
