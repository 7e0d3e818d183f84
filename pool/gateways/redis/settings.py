"""What the gateway was told: config.json, then the environment, then the command line; the last word wins."""

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
SECRETS = ("REDIS_PASSWORD", TOKEN_VARIABLE)  # not for those that this process starts
_MAX_PASSWORD_BYTES = 4096
#: Variable of the protocol -> key of the section.
VARIABLES = {
    "REDIS_HOST": "host",
    "REDIS_PORT": "port",
    "REDIS_DB": "db",
    "REDIS_PASSWORD": "password",
    "TASK_QUEUE_NAME": "task_queue",
    "PROGRESS_CHANNEL": "progress_channel",
    "BASE_URL": "base_url",
}


@dataclass(frozen=True)
class Queue:
    """One list of jobs. limit: jobs taken from it and not over yet."""

    gpu_id: int
    name: str
    limit: int


@dataclass(frozen=True)
class Settings:
    """All that the gateway needs to know beside the pool. tempfile_s, last_word_s: how long each is kept."""

    host: str
    port: int
    db: int
    password: str | None = field(repr=False)
    queues: tuple[Queue, ...]
    channel: str
    engine: str
    base_url: str
    base_token: str | None = field(repr=False)
    roots: tuple[Path, ...]
    tempfiles: Path
    tempfile_s: float
    max_file_bytes: int
    last_word_s: float

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}/{self.db}"


def read_settings(config: Config, environ: Mapping[str, str], *, gpu_ids: Sequence[int] = ()) -> Settings:
    """Settings from all sources. Raises ConfigError naming the key or the variable."""
    told = _with_environment(config, environ)
    if told.engine not in config.engines:
        known = f"there are: {', '.join(config.engines)}"
        raise ConfigError(f"there is no engine {told.engine!r} in this pool; {known}", "redis.engine")
    roots, tempfiles = places(config, environ)
    limit = told.max_in_flight or 2 * config.engines[told.engine].workers
    return Settings(
        host=told.host,
        port=told.port,
        db=told.db,
        password=_password(told),
        queues=_queues(told, tuple(gpu_ids) or told.gpu_ids, limit),
        channel=told.progress_channel,
        engine=told.engine,
        base_url=told.base_url.rstrip("/"),
        base_token=environ.get(TOKEN_VARIABLE) or None,
        roots=roots,
        tempfiles=tempfiles,
        tempfile_s=config.http.tempfile_hours * 3600,
        max_file_bytes=config.http.max_upload_mb * MB,
        last_word_s=told.last_word_hours * 3600,
    )


def prepare(settings: Settings) -> None:
    """Make the folders of files that come and go. Raises ConfigError."""
    for folder in (settings.tempfiles, fetched(settings)):
        for path in (*reversed(folder.parents), folder):
            try:
                if not path.is_dir():
                    fsops.make_dir(str(path))
            except OSError as error:
                raise ConfigError(f"{path} cannot be made: {error.strerror}", "http.base_path") from None


def fetched(settings: Settings) -> Path:
    """Where files from the temporary-file service lie while jobs need them."""
    return settings.tempfiles / "fetched"


def _with_environment(config: Config, environ: Mapping[str, str]) -> RedisConfig:
    """The section with what the variables say in its place; an empty variable says nothing."""
    section = {name: getattr(config.redis, name) for name in RedisConfig.__dataclass_fields__}
    for variable, name in VARIABLES.items():
        if text := environ.get(variable, ""):
            entry = RedisConfig.__dataclass_fields__[name]
            number = entry.type == "int" and text.strip().isascii() and text.strip().isdigit()
            section[name] = entry.metadata["check"](int(text) if number else text, At(variable, config.root))
    if environ.get("REDIS_PASSWORD"):
        section["password_file"] = None
    return RedisConfig(**section)


def _queues(told: RedisConfig, gpu_ids: tuple[int, ...], limit: int) -> tuple[Queue, ...]:
    if not gpu_ids:
        raise ConfigError("is empty: name at least one, or there is no queue to take jobs from", "redis.gpu_ids")
    queues = tuple(Queue(number, told.task_queue.replace("{gpu_id}", str(number)), limit) for number in gpu_ids)
    if len({queue.name for queue in queues}) < len(queues):
        raise ConfigError(
            f"{told.task_queue!r} would be one queue for {len(queues)} gpu_ids: put {{gpu_id}} into it, or name one",
            "redis.task_queue",
        )
    return queues


def _password(told: RedisConfig) -> str | None:
    if told.password_file is None:
        return told.password or None
    try:
        text = fsops.read_bounded(told.password_file.resolve(), _MAX_PASSWORD_BYTES).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{told.password_file} cannot be read: {error}", "redis.password_file") from None
    return text.strip() or None
