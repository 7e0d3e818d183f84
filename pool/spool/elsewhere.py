"""Asking the port for jobs that are not here: those that other machines have submitted to the same cluster.

    run/cluster/port.json       {"identity": …} of the port that serves this spool
    run/cluster/asked/<name>    empty: somebody asks for a job; name: <id>.<fresh name of who asks>
    run/cluster/answers/<name>  "known": the job is in away/ or out/ by now; "unknown"; "away " and why nobody can say

Who asks removes both. A spool without a port has no run/cluster/, and asking costs one look.
"""

from __future__ import annotations

import json
import os
import time

from pool.errors import ClusterAway
from pool.format.names import is_id
from pool.spool import fsops, owner
from pool.spool.tree import Tree
from pool.system.procs import Identity, identity_of

_PATIENCE_S = 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.05
_KNOWN, _UNKNOWN, _AWAY = b"known", b"unknown", b"away "
_ANSWER_BYTES = 4096
_NO_PORT = "no port serves this branch of it; a FilePool starts one, and so does `python -m pool.submit --attach ID`"


def ask(spool: Tree, job_id: str) -> bool:
    """Whether the job is in the cluster, and known here from now on; False for a spool that belongs to none.

    Waits for the answer of the port, at most 3 s. Raises ClusterAway when nobody can say."""
    if not is_id(job_id) or not os.path.isdir(_folder(spool)):
        return False
    try:
        return _ask(spool, f"{job_id}.{owner.fresh()}")
    except (ClusterAway, OSError) as error:
        raise ClusterAway(f"whether the cluster has job {job_id} cannot be known now: {error}") from None


def _ask(spool: Tree, name: str) -> bool:
    if not is_served(spool):
        raise ClusterAway(_NO_PORT)
    try:
        fsops.write_new(_asked(spool, name), [], sync=False)
        return _await(spool, name)
    finally:
        fsops.unlink(_asked(spool, name), missing_ok=True)  # first: the port takes back what it answers to nobody
        fsops.unlink(_answer(spool, name), missing_ok=True)


def _await(spool: Tree, name: str) -> bool:
    until, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
    while True:
        try:
            said = fsops.read_bounded(_answer(spool, name), _ANSWER_BYTES)
        except FileNotFoundError:
            pass
        else:
            if said.startswith(_AWAY):
                raise ClusterAway(said[len(_AWAY) :].decode("utf-8", "replace"))
            return said == _KNOWN
        if not is_served(spool):
            raise ClusterAway(_NO_PORT)
        if time.monotonic() >= until:
            raise ClusterAway(f"its port has not answered within {_PATIENCE_S:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def is_served(spool: Tree) -> bool:
    """Whether a port lives that can be asked."""
    try:
        told = json.loads(fsops.read_bounded(_port(spool), 4096))
        return Identity.from_map(told["identity"]).alive()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


# ---- the port


def open_port(spool: Tree) -> None:
    """This process serves: from now on it is asked. Removes what those have left that are dead."""
    me = identity_of(os.getpid())
    assert me is not None
    folder = _folder(spool)
    for path in (folder, f"{folder}/asked", f"{folder}/answers"):
        fsops.make_dir(path)
    for name in os.listdir(f"{folder}/answers"):
        if _of_the_dead(name):
            fsops.unlink(_answer(spool, name), missing_ok=True)
    body = json.dumps({"identity": me.to_map()}).encode()
    fsops.put(spool.temp(), _port(spool), [body], sync=False)


def close_port(spool: Tree) -> None:
    """This process serves no longer; who waits for an answer gives up."""
    fsops.unlink(_port(spool), missing_ok=True)


def requests(spool: Tree) -> list[tuple[str, str]]:
    """(name of the request, job id) of all that is asked and not answered, the first one first. Removes those of
    processes that are dead."""
    found = []
    answered = frozenset(os.listdir(f"{_folder(spool)}/answers"))
    with os.scandir(f"{_folder(spool)}/asked") as entries:
        for entry in entries:
            if _of_the_dead(entry.name):
                fsops.unlink(entry.path, missing_ok=True)
            elif _owner_of(entry.name) and entry.name not in answered:
                found.append((_age(entry), entry.name))
    return [(name, name.partition(".")[0]) for _, name in sorted(found)]


def answer(spool: Tree, name: str, known: bool) -> None:
    """Answer a request. known: the job is in away/ or out/ by now."""
    _say(spool, name, _KNOWN if known else _UNKNOWN)


def decline(spool: Tree, name: str, why: str) -> None:
    """Answer a request: nobody can know that now. why: for people."""
    _say(spool, name, _AWAY + why.encode("utf-8", "replace")[: _ANSWER_BYTES // 2])


def _say(spool: Tree, name: str, answer: bytes) -> None:
    if not os.path.lexists(_asked(spool, name)):
        return
    fsops.put(spool.temp(), _answer(spool, name), [answer], sync=False)
    if not os.path.lexists(_asked(spool, name)):  # RACE: who asked has given up meanwhile
        fsops.unlink(_answer(spool, name), missing_ok=True)


def _owner_of(name: str) -> str:
    """The process that asks in a request of that name; "" when it is no request."""
    job_id, _, fresh = name.partition(".")
    return fresh.partition(".")[0] if is_id(job_id) else ""


def _of_the_dead(name: str) -> bool:
    who = _owner_of(name)
    return bool(who) and not owner.alive(who)


def _age(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:  # RACE: who asked has given up
        return 0


def _folder(spool: Tree) -> str:
    return f"{spool.root}/run/cluster"


def _port(spool: Tree) -> str:
    return f"{_folder(spool)}/port.json"


def _asked(spool: Tree, name: str) -> str:
    return f"{_folder(spool)}/asked/{name}"


def _answer(spool: Tree, name: str) -> str:
    return f"{_folder(spool)}/answers/{name}"
