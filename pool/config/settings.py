"""config.json as frozen dataclasses. docs/CONFIG.md explains every key; a test keeps the two in step.

`load_config` reads a file, `parse_config` a mapping with the same keys. Whatever is wrong raises ConfigError
with the dotted path of the key. Relative paths begin at the directory of the file. `Config.notes` are things
that were accepted and are worth saying once: an old form that was translated, a key that is not used.
"""

# ruff: noqa: RUF009 - key() is dataclasses.field() with a check

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

from pool.config import checks, legacy
from pool.config.checks import At, key
from pool.config.devices import check_device
from pool.config.digest import content_digest
from pool.errors import ConfigError
from pool.format.names import MAX_ATTEMPTS
from pool.policy.retries import KINDS, Retries
from pool.system import limits

FILE_NAME = "config.json"
ENGINE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)  # no "-": a slot is called engine-index
_KEY = re.compile(r"[!-~]{1,200}", re.ASCII)
_SERVER = re.compile(r"(nats|tls|ws|wss)://[!-~]{1,500}", re.ASCII)
_PEER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_URL = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+(/[!-~]*)?", re.ASCII)
ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){0,20}", re.ASCII)
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.\[\]:_-]+", re.ASCII)
MB = 1024 * 1024
_DAY_S = 86400.0
ELSEWHERE = "pool.cluster:elsewhere"  # what stands for an engine that nodes of a cluster have
_LEVELS = ("TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL")
_EXAMPLE = '{"engines": {"transcribe": {"engine": "inference.transcribe:Transcribe", "workers": 2}}}'


@dataclass(frozen=True)
class LogConfig:
    """Logs of the slots and of the supervisor, in run/logs/ of the spool."""

    max_mb: float = key(10.0, checks.number(0.01, 100_000))  # a log longer than this is turned over
    keep: int = key(3, checks.integer(0, 1000))  # older logs of each slot
    level: str = key("INFO", checks.choice(*_LEVELS))  # of the supervisor

    @property
    def max_bytes(self) -> int:
        """The same in bytes."""
        return int(self.max_mb * MB)


@dataclass(frozen=True)
class RecycleConfig:
    """When a worker is replaced between two jobs; null: never for this reason."""

    max_jobs: int | None = key(None, checks.nullable(checks.integer(1, 10**9)))
    memory_growth_mb: int | None = key(None, checks.nullable(checks.integer(1, 10**7)))  # since warm-up
    gpu_memory_mb: int | None = key(None, checks.nullable(checks.integer(1, 10**7)))  # as the engine reports it

    @property
    def memory_growth_bytes(self) -> int | None:
        """The same in bytes, None: no limit."""
        return None if self.memory_growth_mb is None else self.memory_growth_mb * MB

    @property
    def gpu_memory_bytes(self) -> int | None:
        """The same in bytes, None: no limit."""
        return None if self.gpu_memory_mb is None else self.gpu_memory_mb * MB


@dataclass(frozen=True)
class EngineConfig:
    """One engine: what its workers load, how many there are, how long they may take."""

    name: str
    engine: str = key(MISSING, checks.matching(checks.ENGINE_SPEC, 'of the form "package.module:Class"'))
    max_concurrent_tasks: int = key(1, checks.integer(1, 1024))  # workers
    spares: int = key(0, checks.integer(0, 1024))  # loaded workers in waiting
    device: str = key("cpu", check_device)
    devices: tuple[str, ...] = key((), checks.items(check_device))  # one per slot in turn
    env: Mapping[str, str] = key(None, checks.environment, factory=dict)
    python: str | None = key(None, checks.nullable(checks.text))  # another interpreter
    pythonpath: tuple[Path, ...] = key((), checks.items(checks.path))
    cwd: Path | None = key(None, checks.nullable(checks.path))
    threads: int | None = key(None, checks.nullable(checks.integer(1, 1024)))
    options: Mapping[str, Any] = key(None, checks.plain, factory=dict)  # to Engine.load
    task_timeout_minutes: float | None = key(30.0, checks.nullable(checks.number(0.0001, 60 * 24 * 30)))
    retry_times: int | None = key(None, checks.nullable(checks.integer(0, MAX_ATTEMPTS - 1)))
    retry_on: tuple[str, ...] | None = key(None, checks.nullable(checks.items(checks.choice(*KINDS))))
    cache_enabled: bool = key(False, checks.boolean)
    delete_after_transcription: bool = key(False, checks.boolean)
    boot_timeout_s: float = key(30.0, checks.number(0.1, _DAY_S))
    load_timeout_s: float = key(600.0, checks.number(0.1, _DAY_S))
    warmup_timeout_s: float = key(300.0, checks.number(0.1, _DAY_S))
    stall_timeout_s: float = key(120.0, checks.number(0.1, _DAY_S))  # without progress during a job
    cancel_grace_s: float = key(5.0, checks.number(0, 3600))
    stop_grace_s: float = key(5.0, checks.number(0, 3600))  # between SIGABRT and SIGKILL
    memory_limit_mb: int | None = key(None, checks.nullable(checks.integer(1, 10**7)))  # growth in a job
    recycle: RecycleConfig = key(RecycleConfig(), checks.section(RecycleConfig))
    max_batch: int = key(1, checks.integer(1, 4096))
    batch_wait_ms: float = key(0.0, checks.number(0, 60_000))
    concurrency_mode: str = key("pool", checks.choice("pool", "lock"))  # "lock": one worker
    start_limit: int = key(5, checks.integer(1, 1000))
    start_limit_window_s: float = key(300.0, checks.number(1, _DAY_S))
    bench_s: float = key(900.0, checks.number(0.1, 7 * _DAY_S))
    backoff_s: float = key(1.0, checks.number(0.001, 3600))
    backoff_max_s: float = key(60.0, checks.number(0.001, _DAY_S))

    @property
    def workers(self) -> int:
        """Slots that take jobs."""
        return self.max_concurrent_tasks

    @property
    def slots(self) -> int:
        """All of them, spares included."""
        return self.max_concurrent_tasks + self.spares

    @property
    def retries(self) -> Retries:
        """How often a failed job is tried again, and after what."""
        return Retries(self.retry_times, self.retry_on)

    @property
    def task_timeout_s(self) -> float | None:
        """Seconds a job may run; None: as long as it makes progress."""
        return None if self.task_timeout_minutes is None else self.task_timeout_minutes * 60

    @property
    def memory_limit_bytes(self) -> int | None:
        """The same in bytes, None: no limit."""
        return None if self.memory_limit_mb is None else self.memory_limit_mb * MB


@dataclass(frozen=True)
class HttpConfig:
    """The HTTP gateway. Its limits are per client; null: none on loopback, 600 and 32 elsewhere."""

    host: str = key("127.0.0.1", checks.text)
    port: int = key(8308, checks.integer(0, 65535))  # 0: a free one
    base_path: tuple[Path, ...] = key((), checks.items(checks.path))  # empty: media_roots, else ./media
    token: str | None = key(None, checks.nullable(checks.text))
    token_file: Path | None = key(None, checks.nullable(checks.path))
    root_path: str = key("", checks.matching(ROOT_PATH, "a path like /pool"))  # where a proxy serves the gateway
    cors_origins: tuple[str, ...] = key(
        (), checks.items(checks.matching(_ORIGIN, "an origin like https://app.example"))
    )
    lipsync_engine: str = key("lipsync", checks.matching(ENGINE_NAME, "the name of an engine"))
    transcribe_engine: str = key("transcribe", checks.matching(ENGINE_NAME, "the name of an engine"))
    tempfile_hours: float = key(24.0, checks.number(0.001, 24 * 365))
    max_upload_mb: int = key(2048, checks.integer(1, 10**7))
    upload_timeout_s: float = key(600.0, checks.number(0.1, _DAY_S))  # one whole upload
    return_s: float = key(60.0, checks.number(0.1, _DAY_S))  # for a client of /v1 that left; then its job is cancelled
    rate_per_minute: int | None = key(None, checks.nullable(checks.integer(1, 10**7)))
    concurrent_requests: int | None = key(None, checks.nullable(checks.integer(1, 10**6)))


@dataclass(frozen=True)
class RedisConfig:
    """The Redis gateway. The variables of its protocol win over these. {gpu_id}: one of gpu_ids."""

    host: str = key("localhost", checks.text)
    port: int = key(6379, checks.integer(1, 65535))
    db: int = key(0, checks.integer(0, 100_000))
    username: str | None = key(None, checks.nullable(checks.text))  # of an ACL; null: the default user
    password: str | None = key(None, checks.nullable(checks.text))
    password_file: Path | None = key(None, checks.nullable(checks.path))
    tls: bool = key(False, checks.boolean)  # any of the files below implies it
    tls_ca: Path | None = key(None, checks.nullable(checks.path))
    tls_cert: Path | None = key(None, checks.nullable(checks.path))
    tls_key: Path | None = key(None, checks.nullable(checks.path))
    sentinels: tuple[str, ...] = key((), checks.items(checks.matching(_PEER, "an address like sentinel-1:26379")))
    sentinel_service: str = key("mymaster", checks.matching(_KEY, "a name without spaces"))
    gpu_ids: tuple[int, ...] = key((0,), checks.items(checks.integer(0, 9999)))  # one queue each
    task_queue: str = key("task_queue_gpu_{gpu_id}", checks.matching(_KEY, "a name without spaces"))
    progress_channel: str = key("task_progress", checks.matching(_KEY, "a name without spaces"))
    base_url: str = key("http://localhost:3000", checks.matching(_URL, "an address like http://localhost:3000"))
    engine: str = key("portrait", checks.matching(ENGINE_NAME, "the name of an engine"))
    max_in_flight: int | None = key(None, checks.nullable(checks.integer(1, 10**6)))  # per queue
    last_word_hours: float = key(24.0, checks.number(0.001, 24 * 365))
    lease_s: float = key(60.0, checks.number(1, 24 * 3600))  # a host that is silent for so long is dead


@dataclass(frozen=True)
class ClusterConfig:
    """The NATS servers that join several pools. Without any, the pool is on its own."""

    servers: tuple[str, ...] = key((), checks.items(checks.matching(_SERVER, "an address like nats://host:4222")))
    name: str | None = key(None, checks.nullable(checks.matching(_WORD, "a name of letters, digits, _ and -")))
    labels: tuple[str, ...] = key((), checks.items(checks.matching(_WORD, "a word of letters, digits, _ and -")))
    user: str | None = key(None, checks.nullable(checks.text))
    password_file: Path | None = key(None, checks.nullable(checks.path))
    token_file: Path | None = key(None, checks.nullable(checks.path))
    tls_ca: Path | None = key(None, checks.nullable(checks.path))
    tls_cert: Path | None = key(None, checks.nullable(checks.path))
    tls_key: Path | None = key(None, checks.nullable(checks.path))
    replicas: int = key(1, checks.integer(1, 5))  # of what the servers store, when this machine is the first to need it
    lease_s: float = key(30.0, checks.number(1, 3600))  # a node that is silent for so long has lost its jobs
    deliveries: int = key(4, checks.integer(1, 100))  # nodes that a job may lose before it fails
    cold_after_s: float = key(5.0, checks.number(0, 3600))  # a node without the model leaves a job to others so long
    max_waiting: int = key(100_000, checks.integer(1, 10**8))  # jobs in the stream
    result_hours: float = key(24.0, checks.number(0.01, 24 * 365))  # how long results and media are kept there
    cache_mb: int = key(10_000, checks.integer(1, 10**8))  # media on the disk of a node
    shared: tuple[str, ...] = key((), checks.items(checks.text))  # beginnings of paths and URLs that all machines see


def _engines(value: object, at: At) -> dict[str, EngineConfig]:
    return {name: _engine(name, entry, at.down(name)) for name, entry in checks.table(value, at).items()}


@dataclass(frozen=True)
class Config:
    """The whole configuration."""

    root: Path  # where relative paths begin
    file: Path | None = None  # None: built in, or given as a mapping
    notes: tuple[str, ...] = ()
    digest: str = ""  # of the file's content
    spool: Path = key(Path("spool"), checks.path)
    durable: bool = key(True, checks.boolean)
    max_ready: int = key(100_000, checks.integer(1, 10**8))  # waiting jobs per engine
    min_free_mb: int = key(512, checks.integer(0, 10**9))
    retention_hours: float = key(24.0, checks.number(0, 24 * 3650))
    orphan_grace_s: float = key(60.0, checks.number(0, _DAY_S))
    drain_grace_s: float = key(30.0, checks.number(0, _DAY_S))
    rescan_s: float = key(2.0, checks.number(0.05, 3600))
    media_roots: tuple[Path, ...] = key((), checks.items(checks.path))  # empty: anywhere
    otel: bool = key(False, checks.boolean)  # emit spans
    log: LogConfig = key(LogConfig(), checks.section(LogConfig))
    http: HttpConfig = key(HttpConfig(), checks.section(HttpConfig))
    redis: RedisConfig = key(RedisConfig(), checks.section(RedisConfig))
    cluster: ClusterConfig = key(ClusterConfig(), checks.section(ClusterConfig))
    engines: Mapping[str, EngineConfig] = key(None, _engines, factory=dict)

    @property
    def retention_s(self) -> float:
        """The same in seconds."""
        return self.retention_hours * 3600

    @property
    def is_branch(self) -> bool:
        """Whether its jobs run on other machines: servers of a cluster are named, and no engine of its own."""
        return bool(self.cluster.servers) and all(engine.engine == ELSEWHERE for engine in self.engines.values())

    def engine(self, name: str) -> EngineConfig:
        """Raises ConfigError with the nearest name."""
        if name not in self.engines:
            near = checks.nearest(name, list(self.engines))
            raise ConfigError(f"no such engine{near}; there are: {', '.join(self.engines)}", f"engines.{name}")
        return self.engines[name]


def load_config(file: Path | str | None = None, *, engines: bool = True) -> Config:
    """The configuration in a file (or in a directory's config.json); None: ./config.json, else the defaults.

    engines: raise when none is configured and no cluster is named (nothing could run); False for commands that only
    look at a spool.
    """
    chosen = Path(FILE_NAME if file is None else file).absolute()
    if chosen.is_dir():
        chosen /= FILE_NAME
    if file is None and not chosen.exists():
        if engines:
            raise ConfigError(f"there is no {FILE_NAME} in {chosen.parent}; a small one: {_EXAMPLE}")
        return parse_config({}, chosen.parent, engines=False)
    return decode_config(read_config(chosen), chosen, engines=engines)


def read_config(file: Path) -> bytes:
    """The content of a configuration file. Raises ConfigError."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; a small one: {_EXAMPLE}") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {limits.sentence(error)}") from None


def decode_config(data: bytes, file: Path, *, engines: bool = True) -> Config:
    """The configuration that `file` holds as `data`. Raises ConfigError."""
    document = checks.parse(data, file)
    return parse_config(document, file.parent, file=file, digest=content_digest(data), engines=engines)


def parse_config(
    document: Mapping[str, Any],
    root: Path,
    *,
    file: Path | None = None,
    digest: str = "",
    engines: bool = True,
) -> Config:
    """The configuration in a mapping with the keys of config.json; relative paths begin at `root`."""
    at = At("", root.resolve())
    known = [name for name, entry in Config.__dataclass_fields__.items() if "check" in entry.metadata]
    old = legacy.translate(dict(document), at, known)
    notes = list(old.notes)
    try:
        found = checks.read(Config, {"spool": "spool", **old.document}, at, root=at.root, file=file, digest=digest)
    except ConfigError as error:
        if error.path in old.origins:  # say it where the user wrote it
            origin = old.origins[error.path]
            raise ConfigError(str(error).replace(f"{error.path}: ", "", 1), origin) from None
        raise
    if not found.engines and engines and not found.is_branch:
        raise ConfigError(f"none is configured{f' in {file}' if file else ''}; for example {_EXAMPLE}", "engines")
    for name, engine in found.engines.items():
        if engine.concurrency_mode == "lock":
            notes.append(
                f'engines.{name}: "concurrency_mode": "lock" means one worker here; for more, write '
                f'{{"concurrency_mode": "pool", "max_concurrent_tasks": 2}}'
            )
    fields = {name: getattr(found, name) for name in Config.__dataclass_fields__}
    return Config(**{**fields, "notes": tuple(notes)})


def checked_cluster(before: ClusterConfig, said: Mapping[str, Any]) -> ClusterConfig:
    """The section "cluster" with what a command line says instead. Raises ConfigError."""
    at = At("cluster", Path.cwd())
    given = checks.read(ClusterConfig, dict(said), at)
    return replace(before, **{name: getattr(given, name) for name in said})


def _engine(name: str, value: object, at: At) -> EngineConfig:
    if not ENGINE_NAME.fullmatch(name):
        raise at.error("is no engine name: a small letter, then small letters, digits and _ (at most 32)")
    data = dict(checks.table(value, at))
    if "workers" in data:
        workers = data.pop("workers")
        if "max_concurrent_tasks" in data and data["max_concurrent_tasks"] != workers:
            raise at.down("workers").error(
                f"is {workers!r}, but max_concurrent_tasks is {data['max_concurrent_tasks']!r}; "
                "they mean the same, keep one of them"
            )
        data["max_concurrent_tasks"] = checks.integer(1, 1024)(workers, at.down("workers"))
    found = checks.read(EngineConfig, data, at, also=("workers",), name=name)
    if found.backoff_max_s < found.backoff_s:
        raise at.down("backoff_max_s").error(f"is {found.backoff_max_s:g}, less than backoff_s ({found.backoff_s:g})")
    if found.batch_wait_ms and found.max_batch == 1:
        raise at.down("batch_wait_ms").error("waits for nothing while max_batch is 1; raise max_batch")
    if found.concurrency_mode == "lock":
        fields = {key_: getattr(found, key_) for key_ in EngineConfig.__dataclass_fields__}
        return EngineConfig(**{**fields, "max_concurrent_tasks": 1})
    return found
