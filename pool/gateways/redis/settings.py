"""Settings of the Redis gateway: command line over environment over config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pool.config.checks import At
from pool.config.settings import MB, Config, RedisConfig
from pool.errors import ConfigError
from pool.gateways.http.settings import places
from pool.spool import fsops

TOKEN_VARIABLE = "BASE_URL_TOKEN"
SECRETS = ("REDIS_PASSWORD", TOKEN_VARIABLE)  # not passed on to child processes
_MAX_PASSWORD_BYTES = 4096
_WORKERS_ELSEWHERE = 16  # taken for those of a cluster
#: Environment variable -> key of the section "redis".
VARIABLES = {
    "REDIS_HOST": "host",
    "REDIS_PORT": "port",
    "REDIS_DB": "db",
    "REDIS_USERNAME": "username",
    "REDIS_PASSWORD": "password",
    "TASK_QUEUE_NAME": "task_queue",
    "PROGRESS_CHANNEL": "progress_channel",
    "BASE_URL": "base_url",
}


@dataclass(frozen=True)
class Queue:
    """One list of jobs. limit: most jobs that are taken from it and not over at a time."""

    gpu_id: int
    name: str
    limit: int


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. ca: None for the system's. cert, key: what the gateway shows of itself, None for nothing."""

    ca: Path | None
    cert: Path | None
    key: Path | None


@dataclass(frozen=True)
class Settings:
    """Settings of the gateway.

    Attributes:
        tls: None for plain TCP.
        sentinels: (host, port) of those that know where the master of `service` is; none: Redis is at host and port.
        tempfile_s: Seconds for which uploads are kept.
        last_word_s: Seconds for which the last messages are kept.
        lease_s: A host that is silent for so long is dead.
    """

    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: Tls | None
    sentinels: tuple[tuple[str, int], ...]
    service: str
    queues: tuple[Queue, ...]
    channel: str
    engine: str
    base_url: str
    base_token: str | None = field(repr=False)
    roots: tuple[Path, ...]
    tempfiles: Path
    tempfile_s: float
    names_s: float
    max_file_bytes: int
    last_word_s: float
    lease_s: float

    @property
    def address(self) -> str:
        """host:port/db, or the name of the service at its Sentinels, for messages."""
        if self.sentinels:
            return f"{self.service}/{self.db} of {', '.join(f'{host}:{port}' for host, port in self.sentinels)}"
        return f"{self.host}:{self.port}/{self.db}"


def read_settings(config: Config, environ: Mapping[str, str], *, gpu_ids: Sequence[int] = ()) -> Settings:
    """Settings from all sources. Raises ConfigError with the key or the variable."""
    section = _with_environment(config, environ)
    engine = config.engines.get(section.engine)
    if engine is None and not config.is_branch:  # of a branch the nodes decide, which may all come later
        known = f"there are: {', '.join(config.engines)}"
        raise ConfigError(f"there is no engine {section.engine!r} in this pool; {known}", "redis.engine")
    roots, tempfiles = places(config, environ)
    limit = section.max_in_flight or 2 * (engine.workers if engine else _WORKERS_ELSEWHERE)
    return Settings(
        host=section.host,
        port=section.port,
        db=section.db,
        username=section.username or None,
        password=_password(section),
        tls=_tls(section),
        sentinels=tuple(_peer(text, number) for number, text in enumerate(section.sentinels)),
        service=section.sentinel_service,
        queues=_queues(section, tuple(gpu_ids) or section.gpu_ids, limit),
        channel=section.progress_channel,
        engine=section.engine,
        base_url=section.base_url.rstrip("/"),
        base_token=environ.get(TOKEN_VARIABLE) or None,
        roots=roots,
        tempfiles=tempfiles,
        tempfile_s=config.http.tempfile_hours * 3600,
        names_s=config.retention_s,
        max_file_bytes=config.http.max_upload_mb * MB,
        last_word_s=section.last_word_hours * 3600,
        lease_s=section.lease_s,
    )


def prepare(settings: Settings) -> None:
    """Create the folders of temporary files. Raises ConfigError."""
    for folder in (settings.tempfiles, fetched(settings)):
        for path in (*reversed(folder.parents), folder):
            try:
                if not path.is_dir():
                    fsops.make_dir(str(path))
            except OSError as error:
                raise ConfigError(f"{path} cannot be created: {error.strerror}", "http.base_path") from None


def fetched(settings: Settings) -> Path:
    """The folder of files downloaded from the temporary-file service."""
    return settings.tempfiles / "fetched"


def _with_environment(config: Config, environ: Mapping[str, str]) -> RedisConfig:
    """The section with the values of the environment variables that are not empty."""
    section = {name: getattr(config.redis, name) for name in RedisConfig.__dataclass_fields__}
    for variable, name in VARIABLES.items():
        if text := environ.get(variable, ""):
            entry = RedisConfig.__dataclass_fields__[name]
            number = entry.type == "int" and text.strip().isascii() and text.strip().isdigit()
            section[name] = entry.metadata["check"](int(text) if number else text, At(variable, config.root))
    if environ.get("REDIS_PASSWORD"):
        section["password_file"] = None
    return RedisConfig(**section)


def _queues(section: RedisConfig, gpu_ids: tuple[int, ...], limit: int) -> tuple[Queue, ...]:
    if not gpu_ids:
        raise ConfigError("is empty: give at least one id", "redis.gpu_ids")
    queues = tuple(Queue(number, section.task_queue.replace("{gpu_id}", str(number)), limit) for number in gpu_ids)
    if len({queue.name for queue in queues}) < len(queues):
        raise ConfigError(
            f"{section.task_queue!r} is one queue for {len(queues)} gpu_ids: put {{gpu_id}} into it, or give one id",
            "redis.task_queue",
        )
    return queues


def _tls(section: RedisConfig) -> Tls | None:
    files = {name: getattr(section, name) for name in ("tls_ca", "tls_cert", "tls_key")}
    for name, path in files.items():
        if path is not None and not path.is_file():
            raise ConfigError(f"{path} does not exist", f"redis.{name}")
    if section.tls_key and not section.tls_cert:
        raise ConfigError("is set and tls_cert is not: both, or none", "redis.tls_key")
    return Tls(*files.values()) if section.tls or any(files.values()) else None


def _peer(text: str, number: int) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not 0 < int(port) < 65536:
        raise ConfigError(f"{port} is no port: 1 to 65535", f"redis.sentinels[{number}]")
    return host.strip("[]"), int(port)


def _password(section: RedisConfig) -> str | None:
    if section.password_file is None:
        return section.password or None
    try:
        text = fsops.read_bounded(section.password_file.resolve(), _MAX_PASSWORD_BYTES).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{section.password_file} cannot be read: {error}", "redis.password_file") from None
    return text.strip() or None
