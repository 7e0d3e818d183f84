"""Machines with addresses of their own on one Linux machine: a namespace each, a bridge between them, cuts at will.

Packets from one machine to another vanish when the first one believes a hardware address that nobody has: this needs
no firewall, works in one direction, and leaves connections open. Root and `ip` are needed; `tc` makes a link slow.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

NOBODY = "02:00:00:00:de:ad"  # a hardware address that no machine has
PREFIX = "fps"  # of all names: "fps<pid>"; an interface has at most 15 characters
_SLOW = ("tbf", "rate", "256kbit", "burst", "16kb", "latency", "400ms")
_LOSSY = ("netem", "delay", "150ms", "80ms", "loss", "5%")


class Network(Protocol):
    """Where machines are. can_cut: whether they can be cut off from each other."""

    can_cut: bool

    def add(self, name: str) -> str:
        """A machine; its address."""

    def inside(self, name: str) -> list[str]:
        """What a command on that machine begins with."""

    def cut(self, source: str, target: str) -> None:
        """Packets from source to target vanish."""

    def join(self, source: str, target: str) -> None:
        """They arrive again."""

    def plug(self, name: str, *, there: bool) -> None:
        """Pull the cable of a machine, or put it back."""

    def slow(self, name: str, *, on: bool) -> None:
        """A thin line from this machine."""

    def close(self) -> None:
        """Remove all of it."""


def missing() -> str:
    """What this machine lacks for namespaces, in words; "" when nothing."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (package iproute2)"
    probe = f"{PREFIX}{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "del", probe)
    except Failed as error:
        return f"this machine lets nobody make network namespaces: {error}"
    return ""


class Failed(Exception):
    """A command of iproute2 failed."""


def _ip(*words: str, program: str = "ip") -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{program} {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Namespaces:
    """One namespace for each machine, all on one bridge."""

    can_cut: bool = True
    _machines: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # name: namespace, host's end, address

    def __post_init__(self) -> None:
        remove_stale()
        self._stem = f"{PREFIX}{os.getpid()}"
        self._net = _free_net()
        _ip("link", "add", "name", self._stem, "type", "bridge")
        _ip("addr", "add", f"{self._net[1]}/24", "dev", self._stem)
        _ip("link", "set", self._stem, "up")

    def add(self, name: str) -> str:
        number = len(self._machines) + 2
        space, ours, address = f"{self._stem}-{name}", f"{self._stem}v{number}", str(self._net[number])
        _ip("netns", "add", space)
        self._machines[name] = (space, ours, address)
        _ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", ours, "master", self._stem, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        return address

    def inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self._machines[name][0]]

    def cut(self, source: str, target: str) -> None:
        space, address = self._machines[source][0], self._machines[target][2]
        _ip("-n", space, "neigh", "replace", address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")

    def join(self, source: str, target: str) -> None:
        space, address = self._machines[source][0], self._machines[target][2]
        with contextlib.suppress(Failed):  # it was joined before
            _ip("-n", space, "neigh", "del", address, "dev", "eth0")

    def plug(self, name: str, *, there: bool) -> None:
        _ip("link", "set", self._machines[name][1], "up" if there else "down")

    def slow(self, name: str, *, on: bool) -> None:
        at = ("-n", self._machines[name][0], "qdisc")
        if not on:
            with contextlib.suppress(Failed):
                _ip(*at, "del", "dev", "eth0", "root", program="tc")
            return
        try:
            _ip(*at, "replace", "dev", "eth0", "root", *_LOSSY, program="tc")
        except Failed:  # this kernel has no netem
            _ip(*at, "replace", "dev", "eth0", "root", *_SLOW, program="tc")

    def close(self) -> None:
        _remove(self._stem)


class Loopback:
    """All machines are this one; processes can be hurt, the network cannot."""

    can_cut = False

    def add(self, name: str) -> str:
        return "127.0.0.1"

    def inside(self, name: str) -> list[str]:
        return []

    def cut(self, source: str, target: str) -> None:
        raise NotImplementedError("loopback cannot be cut")

    def join(self, source: str, target: str) -> None:
        """Nothing was cut."""

    def plug(self, name: str, *, there: bool) -> None:
        if not there:
            raise NotImplementedError("loopback has no cable")

    def slow(self, name: str, *, on: bool) -> None:
        if on:
            raise NotImplementedError("loopback is as fast as it is")

    def close(self) -> None:
        """Nothing was made."""


def remove_stale() -> None:
    """Remove what storms left that were killed: their namespaces, all that runs in those, and their disks."""
    stems = {name.partition("-")[0] for name in _spaces()}
    stems |= {link["ifname"] for link in json.loads(_ip("-j", "link", "show", "type", "bridge") or "[]")}
    with open("/proc/mounts", encoding="utf-8") as mounts:
        stems |= {line.split()[0] for line in mounts}
    for stem in stems:
        pid = stem.removeprefix(PREFIX)
        if stem.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove(stem)
            remove_disks(stem)


def remove_disks(stem: str) -> None:
    """Unmount the disks of a storm: tmpfs whose source is its name."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[0] == stem]
    for path in reversed(found):
        subprocess.run(["umount", "--lazy", path], capture_output=True)


def _spaces() -> Sequence[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _remove(stem: str) -> None:
    for space in [name for name in _spaces() if name.startswith(f"{stem}-")]:
        for pid in _ip("netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(Failed):
            _ip("netns", "del", space)
    with contextlib.suppress(Failed):
        _ip("link", "del", stem)


def _free_net() -> ipaddress.IPv4Network:
    used = [
        ipaddress.ip_network(f"{one['local']}/{one['prefixlen']}", strict=False)
        for link in json.loads(_ip("-j", "-4", "addr"))
        for one in link.get("addr_info", ())
    ]
    first = 64 + os.getpid() % 100
    nets = (ipaddress.IPv4Network(f"10.{first + number}.7.0/24") for number in range(90))
    return next(net for net in nets if not any(net.overlaps(one) for one in used if one.version == 4))
