"""run/clients/: which processes use a pool, so that a supervisor that is tied to them knows when the last is gone."""

from __future__ import annotations

import json
import os

from pool.spool import fsops, owner
from pool.spool.tree import Tree
from pool.system import procs


def enter(spool: Tree) -> str:
    """Count this process as a client; the path of the file that says so, to be removed at the end."""
    me = procs.identity_of(os.getpid())
    assert me is not None
    presence = f"{spool.root}/run/clients/{owner.fresh()}.json"
    fsops.put(spool.temp(), presence, [json.dumps(me.to_map()).encode()], sync=False)
    return presence


def roll_call(spool: Tree) -> tuple[int, int]:
    """(registered clients that live, those that were found dead, whose presence is removed)."""
    alive = dead = 0
    folder = spool.root / "run" / "clients"
    for name in os.listdir(folder):
        try:
            identity = procs.Identity.from_map(json.loads((folder / name).read_bytes()))
        except (OSError, ValueError):
            continue
        if identity.alive():
            alive += 1
        else:
            fsops.unlink(str(folder / name), missing_ok=True)
            dead += 1
    return alive, dead
