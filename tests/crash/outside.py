"""A few jobs from submit to record in one fresh process, for whoever injects faults from outside.

python outside.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from crash.rig import Client, Rig, Temp, Unmanned, impatient  # noqa: E402


def main(folder: str) -> int:
    """Client, supervisor and worker in one process, so that one count of system calls spans it all."""
    impatient()
    rig = Rig(Path(folder))
    with Client(rig) as client:
        client.submit("named", do="write", output=str(rig.media / "out.bin"))
        client.submit("again", do="raise", until_attempt=1)
        client.submit("never", do="input")
        client.submit(value="plain", priority=-5)
        rig.drop("dropped.json", {"engine": "fake", "value": 1}, "dropped")
        rig.drop("wrong.json", {"engine": "nobody"})
        Unmanned(rig.config).run()
        Temp(rig.launch()).run()
        client.cancel("again")
        Unmanned(rig.config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
