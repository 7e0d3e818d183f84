"""Wake-ups: at once, also right after a claim; never lost without a rescan; by polling where there are no events."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pool.errors import SpoolError
from pool.spool import fsops
from pool.system import polling, watch
from pool.system.host import mounts
from pool.system.inotify import bindings
from pool.system.polling import Arrivals, Poller
from pool.system.watch import Watcher

PAIRS = 200
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    path.mkdir()
    return path


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network mount."""
    monkeypatch.setattr(watch, "network_mount", lambda path: "nfs4")


def _await(watcher: Watcher, enough: Callable[[Arrivals], bool], seconds: float = 10.0) -> Arrivals:
    """Everything that arrived until there is enough."""
    arrivals, deadline = Arrivals(), time.monotonic() + seconds
    while not enough(arrivals):
        if time.monotonic() > deadline:
            pytest.fail(f"nothing came within {seconds} s; so far {arrivals}")
        watcher.wait(0.1)
        news = watcher.read()
        arrivals.rescan |= news.rescan
        for key, names in news.names.items():
            arrivals.names.setdefault(key, []).extend(names)
    return arrivals


def _expect(watcher: Watcher, *names: str, key: str = "ready") -> Arrivals:
    return _await(watcher, lambda arrivals: set(names) <= set(arrivals.names.get(key, ())))


# ---- latency


@linux
@pytest.mark.invariant(21)
def test_a_job_that_arrives_just_after_a_claim_is_noticed_at_once(ready: Path) -> None:
    """watchdog's own emitter holds it back for 500 ms, because a claim is half a move; ours asks for no departures: the
    news is there when the rename returns."""
    with Watcher({"ready": ready}) as watcher:
        for number in range(PAIRS):
            (ready.parent / "old").touch()
            (ready.parent / "new").touch()
            os.rename(ready.parent / "old", ready / "old")
            os.rename(ready / "old", ready.parent / "claimed")  # a worker claims
            os.rename(ready.parent / "new", ready / str(number))  # and a job arrives just after
            assert watcher.wait(0)
            assert watcher.read().names["ready"] == ["old", str(number)]


@linux
def test_it_waits_as_long_as_it_is_told(ready: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        begun = time.monotonic()
        assert watcher.wait(0.05) is False
        assert time.monotonic() - begun >= 0.045
        assert not watcher.read()
        assert watcher.wait(0) is False


# ---- what is told


@linux
def test_arrivals_by_rename_link_and_creation_in_order_and_no_departures(ready: Path, tmp_path: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        for name in ("one", "two", "three"):
            (tmp_path / name).touch()
            (tmp_path / name).rename(ready / name)
        (ready / "four").touch()
        os.link(ready / "four", ready / "five")
        (ready / "one").rename(tmp_path / "claimed")
        (ready / "two").unlink()
        (ready / "three").chmod(0o600)
        (ready / "three").read_bytes()
        arrivals = _expect(watcher, "five")
        assert arrivals == Arrivals({"ready": ["one", "two", "three", "four", "five"]})
        assert watcher.wait(0.05) is False


@linux
def test_in_the_drop_box_a_file_counts_when_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    with Watcher({"in": tmp_path / "in", "other": tmp_path / "other"}, closes=["in"]) as watcher:
        with open(tmp_path / "in" / "slow", "w") as file:
            file.write("half")
            file.flush()
            assert watcher.wait(0.05) is False
        assert _expect(watcher, "slow", key="in").names == {"in": ["slow"]}
        (tmp_path / "moved").touch()
        (tmp_path / "moved").rename(tmp_path / "in" / "moved")
        (tmp_path / "other" / "made").touch()
        arrivals = _await(watcher, lambda a: len(a.names) == 2)
        assert arrivals.names == {"in": ["moved"], "other": ["made"]}


@linux
def test_names_come_as_they_are(ready: Path, hostile_names: tuple[bytes, ...]) -> None:
    with Watcher({"ready": ready}) as watcher:
        for name in hostile_names:
            os.close(os.open(os.path.join(os.fsencode(ready), name), os.O_CREAT))
        told = _expect(watcher, os.fsdecode(hostile_names[-1])).names["ready"]
        assert [os.fsencode(name) for name in told] == list(hostile_names)


@linux
def test_more_than_one_read_can_hold(ready: Path, tmp_path: Path) -> None:
    names = [f"{number:0200d}" for number in range(2000)]
    with Watcher({"ready": ready}) as watcher:
        for name in names:
            (ready / name).touch()
        assert _expect(watcher, names[-1]).names["ready"] == names


@linux
def test_it_needs_no_thread_and_leaves_no_descriptor(ready: Path) -> None:
    threads, before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with Watcher({"ready": ready}) as watcher:
            assert threading.active_count() == threads
            assert not os.get_inheritable(watcher.fileno())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("remote")
def test_polling_leaves_no_descriptor_and_no_thread(ready: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Watcher({"ready": ready}).close()
    assert len(os.listdir("/proc/self/fd")) == before
    deadline = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if "olling" in type(thread).__name__]


def test_a_directory_that_is_missing_says_so(ready: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for missing in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(SpoolError, match="is missing: start the pool once"):
            Watcher({"ready": ready, "out": missing})


# ---- what is lost is told as well


@linux
@pytest.mark.invariant(19)
def test_an_overflow_asks_for_a_rescan(ready: Path, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"this machine queues {limit} events: too many to overflow in a test")
    (tmp_path / "a").touch()
    with Watcher({"ready": ready}) as watcher:
        inside, outside = str(ready), str(tmp_path / "a")
        for number in range(limit + 100):  # other names each time: the kernel merges what is alike
            os.rename(outside, f"{inside}/{number}")
            os.rename(f"{inside}/{number}", outside)
        arrivals = _await(watcher, lambda a: a.rescan)
        assert len(arrivals.names["ready"]) <= limit
        (ready / "after").touch()
        _expect(watcher, "after")


@linux
def test_a_renewed_directory_is_watched_again_at_once(ready: Path, tmp_path: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        for number in range(3):
            assert fsops.renew_dir(str(ready), str(tmp_path / "spare"))
            assert _await(watcher, lambda a: a.rescan).names == {}
            assert watcher.verify() is False
            (ready / f"after-{number}").touch()
            _expect(watcher, f"after-{number}")
            (ready / f"after-{number}").unlink()


@linux
@pytest.mark.parametrize("noticed", ["by its event", "by verify"])
@pytest.mark.invariant(20)
def test_a_directory_that_goes_and_comes_again(ready: Path, tmp_path: Path, noticed: str) -> None:
    with Watcher({"ready": ready, "other": tmp_path}) as watcher:
        ready.rmdir()
        if noticed == "by its event":
            assert _await(watcher, lambda a: a.rescan)
        for _ in range(3):  # while it is gone, every look says so, and none raises
            assert watcher.verify() is True
            watcher.read()
        ready.mkdir()
        assert watcher.verify() is True
        assert watcher.verify() is False
        (ready / "after").touch()
        _expect(watcher, "after")
        assert (watcher.mode, watcher.reason) == ("inotify", "")


@linux
def test_a_directory_that_was_moved_away_is_no_longer_ours(ready: Path, tmp_path: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        ready.rename(tmp_path / "elsewhere")
        ready.mkdir()
        assert watcher.verify() is True
        (tmp_path / "elsewhere" / "foreign").touch()
        (ready / "ours").touch()
        assert _expect(watcher, "ours").names == {"ready": ["ours"]}


@linux
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE])
@pytest.mark.invariant(20)
def test_limits_that_are_met_later_lead_to_polling(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    from watchdog.observers import inotify_c

    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    with Watcher({"ready": ready}) as watcher:
        monkeypatch.setattr(inotify_c, "inotify_add_watch", refuse)
        ready.rename(tmp_path / "elsewhere")
        ready.mkdir()
        assert watcher.verify() is True
        assert watcher.mode == "polling"
        assert "inotify" in watcher.reason
        (ready / "after").touch()
        _expect(watcher, "after")


@linux
def test_the_bindings_of_watchdog_are_those_we_use(ready: Path) -> None:
    """They are private to watchdog. If this fails, look at `pool.system.inotify` and the bound in pyproject."""
    begin, add_watch = bindings()
    descriptor = begin()
    try:
        assert descriptor >= 0
        assert add_watch(descriptor, os.fsencode(ready), 0x80) >= 1
        assert add_watch(descriptor, os.fsencode(ready / "missing"), 0x80) == -1
        assert ctypes.get_errno() == errno.ENOENT
    finally:
        os.close(descriptor)


@linux
def test_other_bindings_lead_to_polling_that_says_so(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watchdog.observers import inotify_c

    monkeypatch.delattr(inotify_c, "inotify_add_watch")
    with Watcher({"ready": ready}) as watcher:
        assert watcher.mode == "polling"
        assert "watchdog" in watcher.reason
        (ready / "after").touch()
        _expect(watcher, "after")


@linux
def test_a_broken_descriptor_leads_to_polling(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Watcher({"ready": ready}) as watcher:
        folder = os.open(ready, os.O_RDONLY)
        os.dup2(folder, watcher.fileno())
        os.close(folder)
        assert watcher.read() == Arrivals(rescan=True)
        assert (watcher.mode, watcher.reason) == ("polling", "inotify failed: Is a directory")
        (ready / "after").touch()
        _expect(watcher, "after")


# ---- polling

_POLL = """
import sys, time
from pathlib import Path
from pool.system import watch
from pool.system.watch import Watcher

ready = Path(sys.argv[1])
watch.AGAIN_S = 0.05
with Watcher({"ready": ready}) as watcher:
    for name in ("a job", "another"):
        (ready / name).touch()
        print(watcher.mode, "|", watcher.reason, "|", watcher.limited)
        deadline = time.monotonic() + 10
        while name not in watcher.read().names.get("ready", ()):
            assert time.monotonic() < deadline
            watcher.wait(0.1)
        if name == "a job":
            Path(f"/proc/sys/user/max_inotify_{sys.argv[2]}").write_text("64")
            while not watcher.verify():
                assert time.monotonic() < deadline
                time.sleep(0.01)
"""


@linux
@pytest.mark.parametrize("limit", ["instances", "watches"])
@pytest.mark.invariant(20)
def test_when_the_kernel_refuses_events_it_polls_and_says_why_until_it_gives_some(
    ready: Path, child_env: dict[str, str], limit: str
) -> None:
    """A user namespace of its own has limits of its own, so that nobody else on this machine notices."""
    shell = f'echo 0 > /proc/sys/user/max_inotify_{limit} && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    wrapped = [*inside, shell, "sh", sys.executable, "-c", _POLL, str(ready), limit]
    probe = subprocess.run([*inside, "echo 0 > /proc/sys/user/max_inotify_watches"], stderr=-1, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no user namespace here: {probe.stderr.strip()}")
    done = subprocess.run(wrapped, env=child_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"polling | the limit of inotify {limit} of this user is used up (user.max_inotify_{limit} is 0): "
        f"raise it with `sysctl -w user.max_inotify_{limit}=1024` | True\ninotify |  | False\n"
    )


@pytest.mark.usefixtures("remote")
@pytest.mark.invariant(20)
def test_on_a_network_mount_it_polls_and_delivers(ready: Path, tmp_path: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        assert (watcher.mode, watcher.reason) == ("polling", "nfs4 mounts send no events")
        assert not watcher.wait(0)
        for number in range(3):
            (tmp_path / f"job-{number}").touch()
            (tmp_path / f"job-{number}").rename(ready / f"job-{number}")
            arrivals = _expect(watcher, f"job-{number}")
            assert set(arrivals.names) == {"ready"}
            assert "ready" not in arrivals.names["ready"]  # the directory itself is no news
        (ready / "job-0").rename(tmp_path / "claimed")
        assert watcher.verify() is False


@pytest.mark.usefixtures("remote")
def test_a_poller_whose_directory_went_is_started_again(ready: Path) -> None:
    with Watcher({"ready": ready}) as watcher:
        ready.rmdir()
        deadline = time.monotonic() + 10
        while not watcher.verify():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        watcher.verify()  # still gone, and no exception
        ready.mkdir()
        assert watcher.verify() is True
        assert watcher.verify() is False
        assert (watcher.mode, watcher.reason) == ("polling", "nfs4 mounts send no events")
        (ready / "after").touch()
        _expect(watcher, "after")


@pytest.fixture
def quiet_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is made to fail says nothing."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


@pytest.mark.usefixtures("quiet_threads")
@pytest.mark.invariant(20)
def test_an_emitter_that_died_is_replaced(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of watchdog's observer, which is there for other platforms and runs on this one, too."""
    from watchdog.observers.inotify import InotifyEmitter

    def fail(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(sys, "platform", "another")
    with Watcher({"ready": ready}) as watcher:
        assert (watcher.mode, watcher.reason) == ("observer", "")
        (ready / "before").touch()
        _expect(watcher, "before")
        with monkeypatch.context() as patch:
            patch.setattr(InotifyEmitter, "queue_events", fail)
            (ready / "unseen").touch()
            deadline = time.monotonic() + 10
            while watcher.source.healthy():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert watcher.verify() is True
        (ready / "after").touch()
        _expect(watcher, "after")


@pytest.mark.usefixtures("remote", "quiet_threads")
@pytest.mark.invariant(20)
def test_a_polling_thread_that_died_is_replaced(ready: Path) -> None:
    def fail() -> Arrivals:
        raise RuntimeError("injected")

    with Watcher({"ready": ready}) as watcher:
        assert isinstance(watcher.source, Poller)
        watcher.source._look = fail
        watcher.fileno()  # whoever sleeps on several descriptors has a thread that looks
        deadline = time.monotonic() + 10
        while not watcher.verify():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (ready / "after").touch()
        assert select.select([watcher.fileno()], [], [], 10)[0]
        assert watcher.read().names == {"ready": ["after"]}


@pytest.mark.usefixtures("remote")
def test_polling_tells_by_a_descriptor_what_it_tells_who_waits(ready: Path) -> None:
    with Watcher({"ready": ready}, closes=("ready",)) as watcher:
        for number in range(3):
            with (ready / "grows").open("a") as file:  # a file that counts again when it was written to
                file.write(f"{number}\n")
            assert select.select([watcher.fileno()], [], [], 10)[0]
            assert watcher.read().names == {"ready": ["grows"]}
        assert watcher.read() == Arrivals()


class Clock:
    """Time that passes only where somebody sleeps or looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks, self.cost = 100.0, [], 0.0
        self.news = Arrivals()
        monkeypatch.setattr(polling, "time", self)

    def monotonic(self) -> float:
        return self.now

    def look(self) -> Arrivals:
        self.looks.append(self.now)
        self.now += self.cost
        news, self.news = self.news, Arrivals()
        return news

    def pauses(self, poller: Poller, seconds: float) -> list[float]:
        """Between the looks of somebody who waits so long."""
        self.looks = []
        poller.wait(seconds)
        return [round(after - before - self.cost, 6) for before, after in itertools.pairwise(self.looks)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(monkeypatch)

    def sleep(self: threading.Event, timeout: float | None = None) -> bool:
        made.now += timeout or 0.0
        return False

    monkeypatch.setattr(threading.Event, "wait", sleep)
    return made


def test_polling_begins_at_once_and_grows_rare(clock: Clock) -> None:
    clock.cost = 0.0001
    poller = Poller(clock.look, ())
    pauses = clock.pauses(poller, 60)
    assert 0.001 <= pauses[0] < 0.005
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(pauses[:-1]))
    assert pauses[-2] == pytest.approx(0.1)  # 1,000 times what a look costs
    assert clock.pauses(poller, 60)[0] == pytest.approx(0.1)  # nobody waits anew
    poller.hurry()
    assert clock.pauses(poller, 1)[0] < 0.005
    clock.news = Arrivals({"out": ["a record"]})
    clock.pauses(poller, 1)
    assert poller.read().names == {"out": ["a record"]}
    assert clock.pauses(poller, 1)[0] < 0.005  # more may come just after


@pytest.mark.parametrize(("cost", "first", "last"), [(0.000001, 0.0015, 0.02), (0.01, 0.2, 0.5), (3.0, 0.5, 0.5)])
def test_what_polling_costs_is_bounded(clock: Clock, cost: float, first: float, last: float) -> None:
    clock.cost = cost
    pauses = clock.pauses(Poller(clock.look, ()), 100)
    assert pauses[0] == pytest.approx(first)
    assert pauses[-2] == pytest.approx(last)


def test_nobody_waits_nothing_is_looked_at(clock: Clock) -> None:
    Poller(clock.look, ())
    clock.now += 1000
    assert clock.looks == []


@pytest.mark.parametrize("count", [1, polling._FEW + 1])
def test_of_a_large_directory_only_what_is_wanted_counts(ready: Path, count: int) -> None:
    wanted = [f"wanted-{number}" for number in range(count)]
    look = polling.Wanted("out", str(ready), lambda: wanted)
    (ready / "other").touch()
    assert look() == Arrivals()
    for name in wanted[:3]:
        (ready / name).touch()
    assert sorted(look().names["out"]) == wanted[:3]


# ---- which mount is it


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    place = tmp_path / "with space" / "spool"
    place.mkdir(parents=True)
    table = tmp_path / "mounts"

    def kind(*rows: tuple[str, str]) -> str:
        lines = [f"dev {point} {type_} rw 0 0\n" for point, type_ in [("/", "ext4"), *rows]]
        table.write_text("".join([*lines, "short\n", "\n"]))
        return watch.network_mount(str(place), str(table))

    escaped = str(tmp_path / "with space").replace(" ", "\\040")
    assert kind() == ""
    assert kind((escaped, "nfs4")) == "nfs4"
    assert kind((str(tmp_path), "nfs"), (escaped, "ext4")) == ""
    assert kind((escaped, "ext4"), (str(tmp_path), "nfs")) == ""
    assert kind((escaped, "ext4"), (escaped, "cifs")) == "cifs"  # mounted over it
    assert kind((escaped, "fuse.sshfs")) == "fuse.sshfs"
    assert kind((f"{escaped}/spo", "nfs4")) == ""  # another directory whose name begins alike
    assert kind(("/", "9p")) == "9p"
    assert watch.network_mount(str(place), str(tmp_path / "no table")) == ""
    assert mounts(str(table))[-1] == ("/", "9p")
