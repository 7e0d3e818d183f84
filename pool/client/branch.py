"""The configuration of a branch: `FilePool("nats://host:4222")` keeps a spool of its own on this machine.

    nats://host:4222   nats://user:password@a:4222,b:4222   tls://host?tls_ca=/etc/ca.pem&token_file=/etc/token

All clients of one user that name the same address share one branch, in the user's folder for state
(FILEPOOL_BRANCHES overrides it). Its config.json is written once and may be edited: `python -m pool status --config …`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pool.config.settings import Config, load_config
from pool.errors import ConfigError
from pool.spool import fsops

_ADDRESS = re.compile(r"(nats|tls|wss?):/{1,2}([^?]+)(?:\?(.*))?\Z", re.DOTALL)
_KEYS = ("user", "password_file", "token_file", "tls_ca", "tls_cert", "tls_key", "lease_s", "replicas", "shared")
_NUMBERS = ("lease_s", "replicas")


def configured(given: Config | Path | str | None) -> Config:
    """The configuration that a caller means: itself, a file, the address of a cluster, None for ./config.json.

    Raises ConfigError."""
    if isinstance(given, Config):
        return given
    if given is not None and is_address(given):
        return load_config(prepare(given))
    return load_config(given or None)


def is_address(text: object) -> bool:
    """Whether this names a cluster and no file. A path that was an address has one slash less."""
    return isinstance(text, (str, os.PathLike)) and _ADDRESS.match(os.fspath(text)) is not None


def prepare(address: str | os.PathLike[str]) -> Path:
    """The config.json of the branch of an address, written when there is none. Raises ConfigError."""
    cluster = _cluster(os.fspath(address))
    digest = hashlib.sha256(json.dumps(cluster, sort_keys=True).encode()).hexdigest()[:12]
    hosts = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", one.rpartition("@")[2]) for one in cluster["servers"])[:60]
    folder = _folder() / f"{hosts.strip('-')}-{digest}"
    file = folder / "config.json"
    if file.exists():
        return file
    try:
        for parent in [*reversed(folder.parents), folder]:
            if not parent.is_dir():
                fsops.make_dir(str(parent))
        body = json.dumps({"spool": "spool", "cluster": cluster}, indent=2) + "\n"
        fsops.put(f"{folder}/.config.json.{os.getpid()}", str(file), [body.encode()], sync=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made: {error.strerror}; set FILEPOOL_BRANCHES to a folder on a local disk"
        ) from None
    return file


def _folder() -> Path:
    chosen = os.environ.get("FILEPOOL_BRANCHES")
    if chosen:
        return Path(chosen).absolute()
    from platformdirs import user_state_path

    return user_state_path("filepool") / "branches"


def _cluster(address: str) -> dict[str, Any]:
    match = _ADDRESS.match(address)
    assert match is not None, address
    scheme, places, query = match[1], match[2].rstrip("/"), match[3] or ""
    servers = []
    for place in places.split(","):
        bare = re.sub(r"\A[a-z]+:/{1,2}", "", place)
        host = bare.rpartition("@")[2]
        servers.append(f"{scheme}://{bare}" if re.search(r":[0-9]+\Z", host) else f"{scheme}://{bare}:4222")
    found: dict[str, Any] = {"servers": servers}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KEYS:
            raise ConfigError(f"an address of a cluster has no {key!r}; there are: {', '.join(_KEYS)}")
        try:
            found[key] = float(value) if key in _NUMBERS else [value] if key == "shared" else value
        except ValueError:
            raise ConfigError(f"{value!r:.40} is no number", f"cluster.{key}") from None
    if "replicas" in found:
        found["replicas"] = int(found["replicas"])
    return found
