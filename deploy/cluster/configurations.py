"""Writes the configurations of nats-server below deploy/cluster: python deploy/cluster/configurations.py

Passwords, routes and the name of each server come from its environment, so that all servers share one file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pool.cluster.nats_server import Passwords, Peers, Settings, Tls, configuration

HERE = Path(__file__).resolve().parent / "kubernetes"
PLAIN = Settings(
    store=Path("/data"),
    host="0.0.0.0",
    name="$SERVER_NAME",
    monitor_host="0.0.0.0",
    passwords=Passwords("$ADMIN_PASSWORD", "$CLIENT_PASSWORD", "$NODE_PASSWORD"),
    peers=Peers("0.0.0.0", 6222, ("$ROUTE_0", "$ROUTE_1", "$ROUTE_2"), password="$ROUTE_PASSWORD"),
)
CERTIFICATES = Path("/etc/nats-tls")
TLS = replace(PLAIN, tls=Tls(CERTIFICATES / "tls.crt", CERTIFICATES / "tls.key", CERTIFICATES / "ca.crt"))
FILES = {HERE / "base" / "nats-server.conf": PLAIN, HERE / "tls" / "nats-server.conf": TLS}


if __name__ == "__main__":
    for path, settings in FILES.items():
        path.write_text(configuration(settings))
