"""python -m pool.cluster server|node|status|drain|port: join machines to one cluster."""

from __future__ import annotations

from pool.cluster.commands import main

if __name__ == "__main__":
    main()
