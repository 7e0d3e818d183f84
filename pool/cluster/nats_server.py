"""A nats-server for a cluster: its configuration, and one in the foreground for a start.

`configuration` is the text of a nats-server.conf, for one server or one of several. `Server` runs the program as a
child: it ends with the process that started it, and stops cleanly on SIGTERM.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pool.cluster import accounts
from pool.errors import ConfigError, OperatorError
from pool.spool import fsops

PORT, MONITOR_PORT = 4222, 8222
MAX_PAYLOAD = 8 * 1024 * 1024
INSTALL = "pip install 'filepool[cluster]'"
LOOPBACK = "127.0.0.1"
_WRITE_DEADLINE_S, _LAME_DUCK_S, _LAME_DUCK_GRACE_S = 10, 30, 2
_TAIL_LINES = 40
_START_S = 30.0
_SECRET_BYTES = 24


class ServerFailed(OperatorError):
    """A nats-server did not start, or ended by itself; the message carries the end of its log."""


@dataclass(frozen=True)
class Passwords:
    """Of the three users. One that begins with "$" is the name of an environment variable of the server, whose value
    begins with a letter (nats-server reads others as numbers)."""

    admin: str
    client: str
    node: str


@dataclass(frozen=True)
class Tls:
    """PEM files. ca: whose certificates others must show, on routes always, on connections with `verify`."""

    cert: Path
    key: Path
    ca: Path | None = None
    verify: bool = False


@dataclass(frozen=True)
class Peers:
    """The other servers. name: of the cluster. routes: "host:port" of each. password: the same on all of them; ""
    only on loopback.

    What begins with "$" is the name of an environment variable of the server. With such a password the routes are
    variables, too: "nats://route:<password>@host:port" of each.
    """

    host: str
    port: int
    routes: tuple[str, ...]
    name: str = "filepool"
    password: str = ""


@dataclass(frozen=True)
class Settings:
    """One server. store: where it keeps what is stored. max_store_mb, max_memory_mb: MiB, at most. sync: whether what
    is acknowledged is on the disk. monitor: port on loopback for /healthz and metrics, `monitor_host`: elsewhere.
    name: of this server, once in the cluster; one that begins with "$" is the name of an environment variable."""

    store: Path
    host: str = LOOPBACK
    port: int = PORT
    name: str = "filepool"
    monitor: int | None = MONITOR_PORT
    monitor_host: str = LOOPBACK
    max_store_mb: int = 20_000
    max_memory_mb: int = 1024
    sync: bool = True
    passwords: Passwords | None = None
    tls: Tls | None = None
    peers: Peers | None = None


def configuration(settings: Settings) -> str:
    """A nats-server.conf. Raises ConfigError for one that would serve others without a password."""
    _guard(settings)
    peers = settings.peers
    parts = [
        "# written by filepool",
        f"server_name: {_value(settings.name)}",
        f"listen: {_quoted(_address(settings.host, settings.port))}",
        *([f"http: {_quoted(_address(settings.monitor_host, settings.monitor))}"] if settings.monitor else []),
        f"max_payload: {MAX_PAYLOAD}",
        f'write_deadline: "{_WRITE_DEADLINE_S}s"',
        f'lame_duck_duration: "{_LAME_DUCK_S}s"',
        f'lame_duck_grace_period: "{_LAME_DUCK_GRACE_S}s"',
        "jetstream {",
        f"  store_dir: {_quoted(str(settings.store))}",
        f"  max_file_store: {settings.max_store_mb}MB",
        f"  max_memory_store: {settings.max_memory_mb}MB",
        *(["  sync_interval: always  # what is acknowledged is on the disk"] if settings.sync else []),
        "}",
        *_accounts(settings.passwords),
        *(_tls(settings.tls) if settings.tls else []),
        *(_cluster(peers, settings.tls) if peers else []),
    ]
    return "\n".join(parts) + "\n"


def _guard(settings: Settings) -> None:
    if settings.passwords is None and not is_loopback(settings.host):
        raise ConfigError(f"a server on {settings.host} serves other machines, which needs passwords")
    peers = settings.peers
    if peers and not peers.password and not is_loopback(peers.host):
        raise ConfigError(f"routes on {peers.host} lead to other machines, which needs a password")


def _accounts(passwords: Passwords | None) -> list[str]:
    """The account with its users; without passwords, one for connections without credentials."""
    users = ['      { user: "local", password: "local" }']
    if passwords is not None:
        users = [line for role in accounts.ROLES for line in _user(role, getattr(passwords, role))]
    lines = ["accounts {", f"  {accounts.ACCOUNT} {{", "    jetstream: enabled", "    users: [", *users, "    ]", "  }"]
    lines.append("}")
    return lines if passwords is not None else [*lines, f"no_auth_user: {accounts.LOCAL}"]


def _user(role: str, password: str) -> list[str]:
    allowed = accounts.permissions(role)
    head = f"user: {role}, password: {_value(password)}"
    if allowed is None:
        return [f"      {{ {head} }}"]
    lines = [f"      {{ {head}, permissions: {{"]
    for verb in ("publish", "subscribe"):
        lines += [f"        {verb}: ["]
        lines += [f"          {_quoted(subject)}" for subject in getattr(allowed, verb)]
        lines += ["        ]"]
    if allowed.answers:
        lines.append('        allow_responses: { max: 1, expires: "10s" }')
    return [*lines, "      } }"]


def _tls(tls: Tls) -> list[str]:
    """Connections of clients and nodes."""
    lines = ["tls {", f"  cert_file: {_quoted(str(tls.cert))}", f"  key_file: {_quoted(str(tls.key))}"]
    if tls.ca is not None:
        lines.append(f"  ca_file: {_quoted(str(tls.ca))}")
    return [*lines, f"  verify: {str(tls.verify).lower()}", "  timeout: 5", "}"]


def _cluster(peers: Peers, tls: Tls | None) -> list[str]:
    lines = [
        "cluster {",
        f"  name: {_quoted(peers.name)}",
        f"  listen: {_quoted(_address(peers.host, peers.port))}",
    ]
    if peers.password:
        lines.append(f"  authorization {{ user: route, password: {_value(peers.password)}, timeout: 5 }}")
    if tls is not None and tls.ca is not None:
        lines += [f"  {line}" for line in _tls(Tls(tls.cert, tls.key, tls.ca, verify=True))]
    lines.append("  routes: [")
    lines += [f"    {_route(peers.password, address)}" for address in peers.routes]
    return [*lines, "  ]", "}"]


def _route(password: str, address: str) -> str:
    """One of the routes, which carries the user and password of the other side."""
    if address.startswith("$"):
        return address
    if password.startswith("$"):  # a variable cannot stand inside of a text
        raise ConfigError(f"the password of routes is the variable {password}: make {address} a variable, too")
    return _quoted(f"nats://route:{password}@{address}" if password else f"nats://{address}")


def _quoted(text: str) -> str:
    if any(ord(letter) < 32 for letter in text):
        raise ConfigError(f"{text!r} cannot stand in a configuration of nats-server")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(text: str) -> str:
    """A variable, or a text."""
    return text if text.startswith("$") else _quoted(text)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return False


# ---- secrets


def make_passwords(folder: Path) -> Passwords:
    """The passwords in `folder`, one file each ("admin.password" …, mode 0600), made when there are none."""
    _make_folder(folder)
    return Passwords(**{role: _password(password_file(folder, role)) for role in accounts.ROLES})


def route_password(folder: Path) -> str:
    """The password between the servers of a cluster, in "route.password" as those of the users."""
    _make_folder(folder)
    return _password(password_file(folder, "route"))


def password_file(folder: Path, role: str) -> Path:
    """The file with the password of a user."""
    return folder / f"{role}.password"


def _password(path: Path) -> str:
    while True:
        with contextlib.suppress(FileNotFoundError):
            found = path.read_text("ascii").strip()
            if not found:
                raise ConfigError(f"{path} is empty: remove it to have a password made, or write one into it")
            return found
        part = _part(path)
        fsops.write_new(part, [f"{secrets.token_hex(_SECRET_BYTES)}\n".encode()], sync=True)
        with contextlib.suppress(FileExistsError):  # RACE: another server was first, its password counts
            fsops.link(part, str(path))
        fsops.unlink(part)


def _part(path: Path) -> str:
    return str(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))


def _make_folder(path: Path) -> None:
    """A folder for its owner alone, with its parents."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            fsops.make_dir(str(folder))


# ---- the program


def program() -> str:
    """The path of nats-server: beside the interpreter, in its scripts, on PATH. Raises ConfigError."""
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    for folder in (*map(str, places), None):
        found = shutil.which("nats-server", path=folder)
        if found:
            return found
    raise ConfigError(f"nats-server is not installed: {INSTALL}")


class Server:
    """One nats-server as a child of this process.

    folder: where its configuration is written, 0700; the store is made, too. It starts on `start` and is gone after
    `stop`, or when this process dies.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self._folder = settings, folder
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._retired = False

    def start(self, *, seconds: float = _START_S) -> None:
        """Start it; return when it serves (several: when they have a leader). Raises ConfigError, ServerFailed, also
        when it was retired meanwhile."""
        argv = [program(), "-c", str(self._write())]
        self._check_ports()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C of the terminal is for us, who stop it in order
        )
        self._reader = threading.Thread(target=self._read, name="nats-server-log", daemon=True)
        self._reader.start()
        try:
            if self._retired:  # RACE: before there was a process to tell
                raise ServerFailed("nats-server is not to serve any more")
            self._await_ready(time.monotonic() + seconds)
        except BaseException:
            self.stop()
            raise

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, None: it still runs after so many seconds."""
        process = self._running()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def retire(self) -> None:
        """Have one of several hand over what it leads, let its clients move, and end; one that does not run yet never
        will. May be called once more: a server that has just begun to start loses what it is told."""
        self._retired = True
        if self._process is not None:
            self._signal(signal.SIGUSR2 if self.settings.peers else signal.SIGTERM)

    def stop(self, *, seconds: float = 10.0) -> None:
        """End it; with kill -9 when it has not ended after so many seconds."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        if self.wait(seconds) is None:
            self._signal(signal.SIGKILL)
            self.wait()
        if self._reader is not None:
            self._reader.join(seconds)

    def log(self) -> str:
        """The end of its log."""
        return "\n".join(self._tail)

    def url(self) -> str:
        """Where it is reached."""
        host = self.settings.host
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host  # any address: its name
        return f"{'tls' if self.settings.tls else 'nats'}://{_address(host, self.settings.port)}"

    def failure(self, what: str) -> ServerFailed:
        """An error that carries the end of its log."""
        return ServerFailed(f"nats-server {what}; the end of its log:\n{self.log() or '(nothing)'}")

    def _write(self) -> Path:
        _make_folder(self._folder)
        _make_folder(self.settings.store)
        path = self._folder / "nats-server.conf"
        text = configuration(self.settings).encode()
        fsops.put(_part(path), str(path), [text], sync=False)  # for its owner alone: it holds passwords
        return path

    def _check_ports(self) -> None:
        """Raises ServerFailed for a port that another program has, with that program where it can be known."""
        asked = [(self.settings.host, self.settings.port), (self.settings.monitor_host, self.settings.monitor or 0)]
        if self.settings.peers:
            asked.append((self.settings.peers.host, self.settings.peers.port))
        for host, port in asked:
            if port and (error := _taken(host, port)):
                raise ServerFailed(
                    f"{_address(host, port)} cannot be bound: {error}{_holder(port)}; choose another port with --port "
                    "or --monitor"
                )

    def _await_ready(self, until: float) -> None:
        while time.monotonic() < until:
            code = self.wait(0.02)
            if code is not None:
                if self._reader is not None:
                    self._reader.join(5)  # its last lines
                raise self.failure(f"ended with exit code {code} instead of starting")
            if self._ready():
                return
        raise self.failure("did not become ready" + (", the others may not be up" if self.settings.peers else ""))

    def _ready(self) -> bool:
        if not self.settings.monitor:
            return any("Server is ready" in line for line in list(self._tail))
        return healthy(self.settings.monitor_host, self.settings.monitor)

    def _read(self) -> None:
        stream = self._running().stdout
        assert stream is not None
        with stream:
            for line in stream:
                self._tail.append(line.rstrip("\n"))
                with contextlib.suppress(OSError, ValueError):  # nobody reads us: it goes on all the same
                    print(line, end="", file=sys.stderr, flush=True)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise ServerFailed("nats-server was not started")
        return self._process


# A child that the kernel ends with its parent, as it becomes nats-server. RACE: the parent may be gone already.
_CHILD = """
import os, signal, sys
parent, argv = int(sys.argv[1]), sys.argv[2:]
if sys.platform.startswith("linux"):
    import ctypes
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
os.execv(argv[0], argv)
"""


def healthy(host: str, port: int, *, seconds: float = 1.0) -> bool:
    """Whether a server says on its monitoring port that it serves and, of several, has a leader."""
    try:
        with urllib.request.urlopen(f"http://{_address(host, port)}/healthz", timeout=seconds) as answer:
            return bool(json.load(answer).get("status") == "ok")
    except (OSError, ValueError, urllib.error.URLError):
        return False


def run(server: Server, *, ready: Sequence[str] = (), begun: Callable[[], Sequence[str]] | None = None) -> int:
    """Serve in the foreground until SIGTERM or SIGINT, a second one ends it at once. Returns an exit code.

    begun: called when it serves, to create streams; what it returns is printed. ready: lines printed on stdout after
    that. Raises ConfigError, ServerFailed, and what `begun` raises, after the server has ended.
    """
    with _signals(server) as asked:
        try:
            server.start(seconds=math.inf if server.settings.peers else _START_S)  # until most of them are up
            lines = [*(begun() if begun is not None else ()), *ready]
        except BaseException as error:
            server.stop()
            if asked and isinstance(error, Exception):  # it could not serve, for it was told to end
                return 0
            raise
        for line in lines:
            print(line, flush=True)
        if asked:  # RACE: it may have been deaf then
            server.retire()
        code = server.wait()
        server.stop()  # its last lines
    if not asked:
        raise server.failure(f"ended by itself with exit code {code}")
    return 0


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[list[int]]:
    """Stop on a signal: by handing over first, and without on the second one."""
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        asked.append(number)
        server.retire() if len(asked) == 1 else server._signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken(host: str, port: int) -> str:
    """Why a port cannot be bound, "" when it can."""
    for family, kind, proto, _name, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:1]:
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                return error.strerror or str(error)
    return ""


def _holder(port: int) -> str:
    """Who listens on a port: " (nats-server, process 17 has it)"; "" where it cannot be known."""
    from pool.system.portable import listener

    found = listener(port)
    return f" ({found[1]}, process {found[0]}, has it)" if found else ""
