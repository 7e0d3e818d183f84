"""The storm over a cluster: `make chaos-cluster MINUTES=5 SEED=1`, or

    python tests/cluster_storm [--minutes 5] [--seed N] [--nodes 3] [--servers 3] [--clients 2] [--loopback] [--no-sync]
                               [--only STRIKE …] [--pause LEAST MOST] [--flood] [--json FILE] [--folder DIR]

Each server, node and machine of clients has a network namespace, an address and a disk of its own: this needs root and
`ip`. --loopback does without; then only processes are hurt. Prints its seed, a line every half minute, and a summary
as JSON; the exit code is 1 when something was lost, ran twice without a reason, or ended without one, and 2 when this
machine cannot do it. The folder is kept after a fault.

20,000 jobs and 500 kills of nodes: --loopback --flood --only "lose node" "kill agent" --pause 1 4 --minutes 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from cluster_storm.machines import free  # noqa: E402
from cluster_storm.network import Loopback, Namespaces, missing  # noqa: E402
from cluster_storm.storm import STRIKES, Plan, Storm  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--servers", type=int, default=3, choices=[1, 3])
    parser.add_argument("--clients", type=int, default=2, help="of each of two branches")
    parser.add_argument("--loopback", action="store_true", help="without namespaces")
    parser.add_argument("--no-sync", action="store_true", help="servers acknowledge what is not on their disk yet")
    parser.add_argument("--only", nargs="+", choices=STRIKES, default=(), metavar="STRIKE", help=", ".join(STRIKES))
    parser.add_argument("--pause", nargs=2, type=float, default=(0.2, 2.0), help="seconds between strikes")
    parser.add_argument("--flood", action="store_true", help="clients submit short jobs by the hundred")
    parser.add_argument("--json", type=Path, help="write the summary there, too")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    lacks = "" if chosen.loopback else missing()
    if lacks:
        print(f"{lacks}; --loopback does without a network", file=sys.stderr)
        return 2
    os.umask(0o077)
    print(f"--seed {chosen.seed}", flush=True)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="filepool-storm-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    plan = Plan(
        nodes=chosen.nodes,
        servers=chosen.servers,
        clients=chosen.clients,
        sync=not chosen.no_sync,
        disks=not chosen.loopback,
        pause=tuple(chosen.pause),
        only=tuple(chosen.only),
        flood=chosen.flood,
    )
    network = Loopback() if chosen.loopback else Namespaces()
    try:
        storm = Storm(folder, network, chosen.seed, plan, lambda text: print(text, flush=True))
    except BaseException:
        network.close()
        raise
    try:
        storm.start()
        storm.run(chosen.minutes * 60)
        findings = storm.settle()
    finally:
        storm.close()
    text = json.dumps(storm.summary(findings), indent=2)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    faults = [*findings.sentences(), *(f"wrong: {what}" for what in storm.wrong)]
    for fault in faults[:60]:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{len(faults)} faults; see {folder}", file=sys.stderr)
    elif chosen.folder is None:
        free(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
