"""Settings of the HTTP gateway: command line over environment over config.json."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pool.config.settings import MB, Config
from pool.errors import ConfigError
from pool.spool import fsops

TOKEN_VARIABLE = "FILEPOOL_HTTP_TOKEN"  # FILEPOOL_: not passed on to supervisor and workers
ROOTS_VARIABLE = "BASE_PATH"
MIN_TOKEN = 16
_RATE, _CONCURRENT = 600, 32  # defaults for addresses other than loopback
_MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Settings:
    """Settings of the application. None: no such limit, no token. local: the address is reachable from this machine
    only, as far as the gateway knows."""

    host: str
    port: int
    roots: tuple[Path, ...]
    tempfiles: Path
    token: str | None
    local: bool
    lipsync: str
    transcribe: str
    tempfile_s: float
    names_s: float
    max_upload_bytes: int
    upload_timeout_s: float
    return_s: float
    rate_per_minute: int | None
    concurrent: int | None
    root_path: str
    cors_origins: tuple[str, ...]

    @property
    def asks(self) -> Path:
        """The folder of requests that wait for a job."""
        return self.tempfiles / "asks"

    @property
    def history(self) -> Path:
        """The folder of the history."""
        return self.tempfiles / "history"

    @property
    def remote(self) -> bool:
        """Whether clients may be on other machines: who needs a token is not known by the address."""
        return self.token is not None or not self.local

    @property
    def loopback(self) -> bool:
        """Whether the gateway binds a loopback address."""
        return is_loopback(self.host)


def read_settings(
    config: Config,
    environ: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    roots: Sequence[Path] = (),
    token_file: Path | None = None,
    local: bool = False,
) -> Settings:
    """Settings from all sources. local: the address is reachable from this machine only, loopback or not.

    Raises ConfigError, such as for a missing or malformed token.
    """
    http = config.http
    host = http.host if host is None else host
    if not host:
        raise ConfigError('is empty: "127.0.0.1" for this machine only, "0.0.0.0" for all', "http.host")
    chosen, tempfiles = places(config, environ, roots)
    token = _token(config, environ, token_file)
    here = local or is_loopback(host)
    if token is None and not here:
        raise ConfigError(
            f"{host} is reachable from other machines, and no token is set: write one into a file and name it with "
            f"--token-file or http.token_file, or set {TOKEN_VARIABLE} "
            "(python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one); "
            "or bind 127.0.0.1; or say --local, if it is a container whose port is published on 127.0.0.1 only",
            "http.host",
        )
    if token is None and "*" in http.cors_origins:
        raise ConfigError(
            '"*" without a token lets every page in a browser here run jobs: name origins, or set a token',
            "http.cors_origins",
        )
    return Settings(
        host=host,
        port=http.port if port is None else port,
        roots=chosen,
        tempfiles=tempfiles,
        token=token,
        local=here,
        lipsync=http.lipsync_engine,
        transcribe=http.transcribe_engine,
        tempfile_s=http.tempfile_hours * 3600,
        names_s=config.retention_s,
        max_upload_bytes=http.max_upload_mb * MB,
        upload_timeout_s=http.upload_timeout_s,
        return_s=http.return_s,
        rate_per_minute=http.rate_per_minute or (None if here else _RATE),
        concurrent=http.concurrent_requests or (None if here else _CONCURRENT),
        root_path=http.root_path,
        cors_origins=http.cors_origins,
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def prepare(settings: Settings) -> None:
    """Create missing folders. Raises ConfigError."""
    for folder in (*settings.roots, settings.tempfiles, settings.asks, settings.history):
        for path in (*reversed(folder.parents), folder):
            try:
                if not path.is_dir():
                    fsops.make_dir(str(path))
            except OSError as error:
                raise ConfigError(f"{path} cannot be created: {error.strerror}", "http.base_path") from None
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder", "http.base_path")


def places(config: Config, environ: Mapping[str, str], roots: Sequence[Path] = ()) -> tuple[tuple[Path, ...], Path]:
    """(the allowed folders, the folder of uploaded files); the same for every gateway of a pool."""
    chosen = tuple(path.absolute() for path in roots) or _from_environment(environ) or config.http.base_path
    chosen = chosen or config.media_roots or (config.root / "media",)
    base = (config.media_roots or chosen)[0]  # workers may read there, too; never directly below /
    return chosen, (base if base.parent != base else config.root / "media") / ".tempfiles"


def _from_environment(environ: Mapping[str, str]) -> tuple[Path, ...]:
    parts = [part for part in environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if part]
    return tuple(Path(part).expanduser().absolute() for part in parts)


def _token(config: Config, environ: Mapping[str, str], token_file: Path | None) -> str | None:
    if token_file is not None:
        return _checked(_read(token_file, "--token-file"), f"--token-file {token_file}")
    if given := environ.get(TOKEN_VARIABLE):
        return _checked(given, TOKEN_VARIABLE)
    if config.http.token_file is not None:
        return _checked(_read(config.http.token_file, "http.token_file"), "http.token_file")
    return None if config.http.token is None else _checked(config.http.token, "http.token")


def _read(path: Path, where: str) -> str:
    try:
        return fsops.read_bounded(path.resolve(), _MAX_TOKEN_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a token: {error}", where) from None


def _checked(token: str, where: str) -> str:
    token = token.strip()
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"a token must have at least {MIN_TOKEN} printable ASCII characters and no spaces", where)
    return token
