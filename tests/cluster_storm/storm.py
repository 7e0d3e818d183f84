"""The hand that strikes machines, processes and lines, and the account of what it did."""

from __future__ import annotations

import heapq
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.world import alive, kill

from . import clock
from .checker import Findings, examine
from .machines import LEASE_S, Branch, Fleet, Node
from .network import Network

#: What may happen, and how often compared with the rest. "cut" and "slow" need a network of its own.
STRIKES = {
    "kill agent": 6,
    "kill supervisor": 3,
    "kill worker": 5,
    "lose node": 4,
    "stop agent": 4,
    "stop node": 1,
    "drain node": 1,
    "cut node": 4,
    "cut node one way": 4,
    "unplug node": 2,
    "flap node": 2,
    "slow node": 2,
    "fill node": 2,
    "jump node": 2,
    "kill server": 3,
    "kill leader": 3,
    "kill two servers": 1,
    "stop server": 2,
    "stop leader": 2,
    "cut server": 2,
    "cut servers one way": 2,
    "depose leader": 3,
    "fill server": 0.7,
    "kill client": 3,
    "kill port": 3,
    "stop port": 2,
    "cut branch": 2,
    "flap branch": 1,
}
NETWORK = ("cut", "unplug", "flap", "slow")
DISKS = ("fill",)
CLOCK = ("jump",)
LEADERS = ("FILEPOOL_JOBS", "KV_filepool_results", "KV_filepool_claims", "KV_filepool_ids")


@dataclass
class Blow:
    """A strike. begin, end: ns of the clock of the machine since its start; end 0: it still lasts. whom: what cannot do
    its part for so long."""

    begin: int
    what: str
    whom: tuple[str, ...]
    end: int = 0


@dataclass(frozen=True)
class Plan:
    """How large a storm is. sync: servers write to the disk what they acknowledge. pause: seconds between strikes, at
    least and at most. only: the strikes, all that can be when empty. flood: clients submit hundreds of short jobs at a
    time."""

    nodes: int = 3
    servers: int = 3
    branches: int = 2
    clients: int = 2
    sync: bool = True
    disks: bool = True
    pause: tuple[float, float] = (0.2, 2.0)
    only: tuple[str, ...] = ()
    flood: bool = False


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Storm:
    """One storm. `run`, then `settle`, then `close` in any case."""

    def __init__(self, folder: Path, network: Network, seed: int, plan: Plan, told: Callable[[str], None] = print):
        self.folder, self.network, self.seed, self.plan, self.told = folder, network, seed, plan, told
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.blows: list[Blow] = []
        self.wrong: list[str] = []
        self._busy: set[str] = set()  # struck, and not yet well again
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self._begun = time.monotonic()
        library = clock.library(folder)
        self.jumps = library is not None
        self.fleet = Fleet(folder, network, plan.servers, sync=plan.sync, disks=plan.disks)
        self.nodes = [
            Node(folder / f"n{number}", f"n{number}", network, self.fleet, library, disk=plan.disks)
            for number in range(plan.nodes)
        ]
        self.branches = [
            Branch(folder / f"b{number}", f"b{number}", network, self.fleet) for number in range(plan.branches)
        ]
        self._log = open(folder / "strikes.log", "a", encoding="utf-8")  # noqa: SIM115

    # ---- the storm

    def start(self) -> None:
        """Servers, nodes, clients; in that order."""
        for name in self.fleet.names:
            self.fleet.start(name)
        self.fleet.wait()
        self.fleet.set_up()
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready(1)
        for branch in self.branches:
            for _ in range(self.plan.clients):
                self._start_client(branch)

    def run(self, seconds: float) -> None:
        """Strike for so long."""
        self._begun = time.monotonic()
        until, tell_at, due = time.monotonic() + seconds, time.monotonic() + 30, time.monotonic()
        while time.monotonic() < until:
            due = max(time.monotonic() - 1, due + self.rng.uniform(*self.plan.pause))
            self._sleep_until(due)
            self.strike()
            self._look_after()
            if time.monotonic() > tell_at:
                tell_at += 30
                self.told(f"{time.monotonic() - self._begun:.0f} s: {dict(self.done)}")

    def strikes(self) -> dict[str, float]:
        """What can happen here."""
        left = {name: often for name, often in STRIKES.items() if not self.plan.only or name in self.plan.only}
        for name in STRIKES:
            verb = name.partition(" ")[0]
            few = self.plan.servers < 3 and name.endswith(("two servers", "server", "servers one way", "leader"))
            if (
                (verb in NETWORK and not self.network.can_cut)
                or (verb in DISKS and not self.plan.disks)
                or (verb in CLOCK and not self.jumps)
                or (few and not name.startswith(("kill server", "stop server")))
            ):
                left.pop(name, None)
        return left

    def strike(self) -> None:
        """One misfortune; nothing when its victim has not recovered from the last one."""
        table = self.strikes()
        what = self.rng.choices(list(table), list(table.values()))[0]
        if getattr(self, f"_{what.replace(' ', '_')}")() is not False:
            self.done[what] += 1

    def _blow(self, what: str, *whom: str, seconds: float, end: Callable[[], object]) -> None:
        """Note it, and what ends it after so many seconds."""
        blow = Blow(now_ns(), what, whom)
        self.blows.append(blow)
        self._busy.update(whom)
        self._say(f"{what} {' '.join(whom)} for {seconds:.1f} s")

        def over() -> None:
            end()
            blow.end = now_ns()
            self._busy.difference_update(whom)
            self._say(f"over: {what} {' '.join(whom)}")

        self._serial += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, self._serial, over))

    def _say(self, text: str) -> None:
        wall = time.strftime("%H:%M:%S")
        self._log.write(f"{wall} {now_ns()} {time.monotonic() - self._begun:.2f} {text}\n")
        self._log.flush()

    def _sleep_until(self, at: float) -> None:
        """And end meanwhile what is to end."""
        while True:
            due = self._later[0][0] if self._later else at
            time.sleep(max(0.0, min(due, at) - time.monotonic()))
            if self._later and due <= at:
                heapq.heappop(self._later)[2]()
            else:
                return

    def _start_client(self, branch: Branch, *, reader: bool = False) -> None:
        others = next((one for one in self.branches if one is not branch), branch)
        how = "reader" if reader else "flood" if self.plan.flood else ""
        branch.client(self.seed, others.history, how)

    def _look_after(self) -> None:
        """Start what has ended, and look how it ended."""
        for branch in self.branches:
            for client in [client for client in branch.clients if client.poll() is not None]:
                branch.clients.remove(client)
                if client.returncode != -signal.SIGKILL:
                    self.wrong.append(f"a client of {branch.name} ended with {client.returncode}")
                self._start_client(branch)
        for node in self.nodes:
            if node.name not in self._busy and node.agent is not None and node.agent.poll() is not None:
                if "No space left" in node.said():
                    self.done["agent found its disk full"] += 1
                else:
                    self.wrong.append(f"the agent of {node.name} ended with {node.agent.returncode}: {node.said()}")
                node.start()
        for name, process in self.fleet.processes.items():
            if name not in self._busy and process.poll() is not None:
                self.wrong.append(f"server {name} ended with {process.returncode}")
                self.fleet.start(name)

    # ---- nodes

    def _node(self) -> Node | None:
        free = [node for node in self.nodes if node.name not in self._busy]
        return self.rng.choice(free) if free else None

    def _for(self, most: float, least: float = 0.2) -> float:
        """Seconds; often short, now and then longer than a lease."""
        return least + (most - least) * float(self.rng.random() ** 1.5)

    def _kill_agent(self) -> bool | None:
        node = self._node()
        pid = node.pid("agent") if node is not None else None
        if node is None or pid is None:
            return False
        kill(pid)
        assert node.agent is not None
        node.agent.wait()
        self._blow("kill agent", node.name, seconds=self._for(2 * LEASE_S), end=node.start)
        return None

    def _kill_process(self, whom: str) -> bool | None:
        node = self._node()
        pid = node.pid(whom) if node is not None else None
        if node is None or pid is None:
            return False
        kill(pid)
        self._say(f"kill {whom} {node.name} {pid}")
        return None

    def _kill_supervisor(self) -> bool | None:
        return self._kill_process("supervisor")

    def _kill_worker(self) -> bool | None:
        return self._kill_process("worker")

    def _lose_node(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        node.lose()
        self._blow("lose node", node.name, seconds=self._for(3 * LEASE_S), end=node.start)
        return None

    def _stop_agent(self) -> bool | None:
        node = self._node()
        pid = node.pid("agent") if node is not None else None
        if node is None or pid is None:
            return False
        kill(pid, signal.SIGSTOP)
        self._blow("stop agent", node.name, seconds=self._for(3 * LEASE_S), end=lambda: kill(pid, signal.SIGCONT))
        return None

    def _stop_node(self) -> bool | None:
        """All processes of a machine, as when it is suspended."""
        node = self._node()
        if node is None:
            return False
        pids = [pid for pid in (node.pid("agent"), node.pid("supervisor"), *node.processes()) if pid is not None]
        for pid in pids:
            kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            for pid in pids:
                kill(pid, signal.SIGCONT)

        self._blow("stop node", node.name, seconds=self._for(3 * LEASE_S), end=go_on)
        return None

    def _drain_node(self) -> bool | None:
        node = self._node()
        pid = node.pid("agent") if node is not None else None
        if node is None or pid is None:
            return False
        kill(pid, signal.SIGTERM)

        def again() -> None:
            if node.pid("agent") is not None:  # the servers are away, or it is not done
                kill(pid)
                assert node.agent is not None
                node.agent.wait()
            node.start()

        self._blow("drain node", node.name, seconds=self._for(3 * LEASE_S, 4), end=again)
        return None

    def _ways(self, name: str, others: list[str], how: str) -> list[tuple[str, str]]:
        out = [(name, other) for other in others]
        back = [(other, name) for other in others]
        return {"both": out + back, "out": out, "back": back}[how]

    def _cut(self, what: str, name: str, others: list[str], how: str, most: float) -> None:
        ways = self._ways(name, others, how)
        for source, target in ways:
            self.network.cut(source, target)

        def join() -> None:
            for source, target in ways:
                self.network.join(source, target)

        self._blow(what, name, seconds=self._for(most), end=join)

    def _cut_node(self) -> bool | None:
        """From all servers, or from one of them."""
        node = self._node()
        if node is None:
            return False
        others = self.fleet.names if self.rng.random() < 0.7 else [self.rng.choice(self.fleet.names)]
        self._cut("cut node", node.name, others, "both", 4 * LEASE_S)
        return None

    def _cut_node_one_way(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        how = self.rng.choice(["out", "back"])
        self._cut(f"cut node one way ({how})", node.name, self.fleet.names, how, 4 * LEASE_S)
        return None

    def _unplug_node(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        self.network.plug(node.name, there=False)
        self._blow(
            "unplug node",
            node.name,
            seconds=self._for(3 * LEASE_S),
            end=lambda: self.network.plug(node.name, there=True),
        )
        return None

    def _flap(self, what: str, name: str) -> None:
        times = sorted(self.rng.uniform(0.1, 8) for _ in range(2 * self.rng.randint(2, 6)))
        for number, after in enumerate(times):
            there = bool(number % 2)
            self._serial += 1
            act = (time.monotonic() + after, self._serial, lambda there=there: self.network.plug(name, there=there))
            heapq.heappush(self._later, act)
        self._blow(what, name, seconds=times[-1] + 0.1, end=lambda: self.network.plug(name, there=True))

    def _flap_node(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        self._flap("flap node", node.name)
        return None

    def _slow_node(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        self.network.slow(node.name, on=True)
        self._blow("slow node", node.name, seconds=self._for(12, 2), end=lambda: self.network.slow(node.name, on=False))
        return None

    def _fill_node(self) -> bool | None:
        node = self._node()
        if node is None:
            return False
        node.disk.fill()
        self._blow("fill node", node.name, seconds=self._for(10, 1), end=node.disk.empty)
        return None

    def _jump_node(self) -> bool | None:
        node = self._node()
        if node is None or node.clock is None:
            return False
        clock_, seconds = node.clock, self.rng.choice([-3600, -30, -5, 5, 30, 3600])
        clock_.jump(seconds)
        self._blow(f"jump node ({seconds:+d} s)", node.name, seconds=self._for(15, 2), end=lambda: clock_.jump(0))
        return None

    # ---- servers

    def _server(self) -> str | None:
        """One, unless another is struck already: two at a time only on purpose."""
        return None if self._busy & set(self.fleet.names) else self.rng.choice(self.fleet.names)

    def _leading(self) -> str | None:
        if self._busy & set(self.fleet.names):
            return None
        return self.fleet.leader(self.rng.choice(LEADERS)) or None

    def _down(self, what: str, *names: str, most: float) -> None:
        for name in names:
            self.fleet.kill(name)

        def up() -> None:
            for name in names:
                self.fleet.start(name)

        self._blow(what, *names, seconds=self._for(most), end=up)

    def _kill_server(self) -> bool | None:
        name = self._server()
        if name is None:
            return False
        self._down("kill server", name, most=2 * LEASE_S)
        return None

    def _kill_leader(self) -> bool | None:
        name = self._leading()
        if name is None:
            return False
        self._down("kill leader", name, most=2 * LEASE_S)
        return None

    def _kill_two_servers(self) -> bool | None:
        if self._server() is None:
            return False
        self._down("kill two servers", *self.rng.sample(self.fleet.names, 2), most=4 * LEASE_S)
        return None

    def _halt(self, what: str, name: str | None) -> bool | None:
        if name is None:
            return False
        self.fleet.signal(name, signal.SIGSTOP)
        self._blow(what, name, seconds=self._for(3 * LEASE_S), end=lambda: self.fleet.signal(name, signal.SIGCONT))
        return None

    def _stop_server(self) -> bool | None:
        return self._halt("stop server", self._server())

    def _stop_leader(self) -> bool | None:
        return self._halt("stop leader", self._leading())

    def _cut_server(self) -> bool | None:
        """From the other servers, and half of the time from everybody."""
        name = self._server()
        if name is None:
            return False
        others = [one for one in self.fleet.names if one != name]
        if self.rng.random() < 0.5:
            others += [node.name for node in self.nodes] + [branch.name for branch in self.branches]
        self._cut("cut server", name, others, "both", 3 * LEASE_S)
        return None

    def _cut_servers_one_way(self) -> bool | None:
        name = self._server()
        if name is None:
            return False
        others = [one for one in self.fleet.names if one != name]
        self._cut("cut servers one way", name, others, self.rng.choice(["out", "back"]), 3 * LEASE_S)
        return None

    def _depose_leader(self) -> bool | None:
        if self._server() is None:
            return False
        stream = self.rng.choice(LEADERS)
        self._say(f"depose leader of {stream}")
        self.fleet.depose(stream)
        return None

    def _fill_server(self) -> bool | None:
        """What a server does without a disk only a restart ends."""
        name = self._server()
        if name is None:
            return False
        disk = self.fleet.disks[name]
        disk.fill()

        def again() -> None:
            disk.empty()
            self.fleet.kill(name)
            self.fleet.start(name)

        self._blow("fill server", name, seconds=self._for(8, 1), end=again)
        return None

    # ---- branches

    def _branch(self) -> Branch | None:
        free = [branch for branch in self.branches if branch.name not in self._busy]
        return self.rng.choice(free) if free else None

    def _kill_client(self) -> bool | None:
        branch = self._branch()
        living = [client for client in branch.clients if client.poll() is None] if branch is not None else []
        if not living:
            return False
        client = self.rng.choice(living)
        self._say(f"kill client {client.pid}")
        kill(client.pid)
        return None

    def _kill_port(self) -> bool | None:
        branch = self._branch()
        pid = branch.port() if branch is not None else None
        if branch is None or pid is None:
            return False
        self._say(f"kill port {branch.name}")
        kill(pid)
        return None

    def _stop_port(self) -> bool | None:
        branch = self._branch()
        pid = branch.port() if branch is not None else None
        if branch is None or pid is None:
            return False
        kill(pid, signal.SIGSTOP)
        self._blow("stop port", branch.name, seconds=self._for(10), end=lambda: kill(pid, signal.SIGCONT))
        return None

    def _cut_branch(self) -> bool | None:
        branch = self._branch()
        if branch is None:
            return False
        how = self.rng.choice(["both", "out", "back"])
        self._cut(f"cut branch ({how})", branch.name, self.fleet.names, how, 3 * LEASE_S)
        return None

    def _flap_branch(self) -> bool | None:
        branch = self._branch()
        if branch is None:
            return False
        self._flap("flap branch", branch.name)
        return None

    # ---- the end

    def settle(self, patience_s: float = 240) -> Findings:
        """End the strikes, start everything anew, wait until all is decided, and look at what there is."""
        for branch in self.branches:
            branch.stop_clients()
        while self._later:
            heapq.heappop(self._later)[2]()
        self._say("the storm is over; everything starts anew")
        for node in self.nodes:
            node.lose()
        for name in self.fleet.names:
            self.fleet.kill(name)
        for branch in self.branches:
            port = branch.port()
            if port is not None:
                kill(port)
        for name in self.fleet.names:
            self.fleet.start(name)
        self.fleet.wait()
        for node in self.nodes:
            node.start()
        for branch in self.branches:
            self._start_client(branch, reader=True)
        began = time.monotonic()
        self._await_quiet(began + patience_s)
        self.quiet_s = time.monotonic() - began
        self._say(f"quiet after {self.quiet_s:.0f} s")
        return examine(self)

    def _await_quiet(self, until: float) -> None:
        tell_at = time.monotonic() + 20
        while time.monotonic() < until:
            for branch in self.branches:
                if not branch.clients or branch.clients[-1].poll() is not None:
                    self.wrong.append(f"the reader of {branch.name} ended")
                    self._start_client(branch, reader=True)
            held = {branch.name: branch.world.held() for branch in self.branches}
            held |= {node.name: node.held() for node in self.nodes}
            if not any(held.values()):
                return
            if time.monotonic() > tell_at:
                tell_at += 20
                self.told(f"waits for { ({name: len(names) for name, names in held.items()}) }")
            time.sleep(0.3)
        for name, names in held.items():
            if names:
                self.wrong.append(f"{name} holds {len(names)} jobs after all that time, as {names[:3]}")

    def summary(self, findings: Findings) -> dict[str, Any]:
        """What happened, for machines and for docs."""
        kills = sum(n for what, n in self.done.items() if what.startswith(("kill", "lose")))
        cuts = sum(n for what, n in self.done.items() if what.startswith(NETWORK))
        stops = sum(n for what, n in self.done.items() if what.startswith("stop"))
        return {
            "seed": self.seed,
            "jobs": findings.jobs,
            "states": dict(findings.states),
            "kills": kills,
            "partitions": cuts,
            "stops": stops,
            "strikes": dict(sorted(self.done.items())),
            "without": sorted(set(STRIKES) - set(self.strikes())),
            "quiet after s": round(self.quiet_s),
            **findings.figures,
            "faults": {kind: len(found) for kind, found in findings.faults.items() if found},
            "wrong": len(self.wrong),
        }

    def close(self) -> None:
        """End all that was started. Folders stay."""
        while self._later:
            _, _, end = heapq.heappop(self._later)
            end()
        for branch in self.branches:
            branch.close()
        for node in self.nodes:
            for pid in (node.pid("agent"), node.pid("supervisor"), *node.processes()):
                if pid is not None and alive(pid):
                    kill(pid, signal.SIGCONT)
            node.clear()
        self.fleet.close()
        self._log.close()
        self.network.close()
