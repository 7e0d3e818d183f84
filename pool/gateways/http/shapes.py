"""Request and response bodies as models: they validate requests and give the schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pool.format.names import MAX_ATTEMPTS, PRIORITY_HIGHEST, PRIORITY_LOWEST
from pool.format.trace_context import STATE_CHARS
from pool.job.terms import (
    DEPENDENCIES_MOST,
    FIELDS_MOST,
    LABEL_PATTERN,
    LABELS_MOST,
    NOTE_CHARS,
    TAGS_MOST,
    TIMEOUT_LEAST_S,
    TIMEOUT_MOST_S,
)

_SWITCHES = {"0": 0, "1": 1, "true": 1, "false": 0, "": 0}


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


Switch = Annotated[Literal[0, 1], BeforeValidator(_switch)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", max_length=100)]
Kind = Literal["infrastructure", "resource", "engine", "timeout"]
Label = Annotated[str, Field(pattern=f"^{LABEL_PATTERN}$", max_length=64)]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]


class Strict(BaseModel):
    """A body without unknown keys or type conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Generate(Strict):
    """A request for a lip-synced video."""

    audio_path: PathText = Field(description="the speech: a file under the allowed folders, or tempfile:<file_id>")
    video_path: PathText = Field(description="the template: video or picture with the face of the speaker")
    save_path: PathText = Field(
        description="the video to write, .mp4; with a trailing slash: <task_id>.mp4 in that folder"
    )
    watermark: Switch = Field(default=0, description="1: a watermark in the lower right corner")
    digital_auth: Switch = Field(default=0, description="1: the digital-human label in the upper right corner")
    task_id: Id | None = Field(default=None, description="your id for the job; the same id again is the same job")


class Generated(BaseModel):
    """The video of a completed task. save_path: as in the request."""

    save_path: str
    task_id: str


class Envelope(BaseModel):
    """The response of the digital-human service. code: the HTTP status; data: null when the task failed."""

    code: int
    message: str = Field(min_length=1)
    data: Generated | None = None


class FailedEnvelope(BaseModel):
    """An error response of the digital-human service. code: the HTTP status."""

    code: int
    message: str = Field(min_length=1)
    data: dict[str, Any] | None = None


class Health(BaseModel):
    """The health of one engine. message: the reason, empty when a token is set."""

    status: Literal["ok", "starting", "down"]
    service: str
    message: str = ""


class Uploaded(BaseModel):
    """An uploaded file. file_id: use it in jobs as tempfile:<file_id>."""

    success: Literal[True] = True
    file_id: str
    file_type: Literal["image", "audio", "video"]
    original_name: str


class UploadFailed(BaseModel):
    """An error response of the temporary-file service."""

    success: Literal[False] = False
    message: str = Field(min_length=1)


class Submit(Strict):
    """A job for an engine; GET /engines gives its parameters."""

    params: dict[str, Any] = Field(
        default_factory=dict, description="paths: under the allowed folders, or tempfile:<id>"
    )
    id: Id | None = Field(default=None, description="your id for the job; the same id again is the same job")
    priority: int = Field(default=0, ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST, description="higher runs first")
    timeout_s: float | None = Field(
        default=None, ge=TIMEOUT_LEAST_S, le=TIMEOUT_MOST_S, description="limit of one attempt; default: the engine's"
    )
    retry_times: int | None = Field(
        default=None, ge=0, lt=MAX_ATTEMPTS, description="further attempts; default: the engine's"
    )
    retry_on: list[Kind] | None = Field(default=None, description="kinds of failure to retry; default: the engine's")
    tags: list[str] = Field(default_factory=list, max_length=TAGS_MOST, description="words to find the job by")
    note: str = Field(default="", max_length=NOTE_CHARS, description="a comment, shown in lists of jobs")
    log_context: dict[str, str | bool | int | float] | None = Field(
        default=None, max_length=FIELDS_MOST, description="fields that are added to every log line of the job"
    )
    traceparent: str = Field(
        default="", max_length=STATE_CHARS, description="W3C trace context; default: the header of the request"
    )
    tracestate: str = Field(default="", max_length=STATE_CHARS, description="W3C trace state, sent with traceparent")
    not_before: float | str | None = Field(
        default=None, description="earliest start: seconds from now, such as 2h, or a date and time with a time zone"
    )
    expires: float | str | None = Field(
        default=None, description="the job fails if it has not started by then; format as not_before"
    )
    depends_on: list[Id] = Field(
        default=[], max_length=DEPENDENCIES_MOST, description="ids of jobs that must complete first"
    )
    labels: list[Label] = Field(
        default=[], max_length=LABELS_MOST, description="run it only on a machine that has all of these labels"
    )


class Rerun(Strict):
    """Changes to the old job; keys that are missing stay as they are."""

    params: dict[str, Any] = Field(
        default_factory=dict, description="changed parameters; secret ones must be given again"
    )
    without: list[str] = Field(default_factory=list, description="keys of parameters to remove")
    id: Id | None = Field(default=None, description="your id for the new job")
    priority: int | None = Field(default=None, ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST)
    timeout_s: float | None = Field(default=None, ge=TIMEOUT_LEAST_S, le=TIMEOUT_MOST_S)
    retry_times: int | None = Field(default=None, ge=0, lt=MAX_ATTEMPTS)
    retry_on: list[Kind] | None = Field(default=None)
    tags: list[str] | None = Field(default=None, max_length=TAGS_MOST)
    note: str | None = Field(default=None, max_length=NOTE_CHARS)
    log_context: dict[str, str | bool | int | float] | None = Field(default=None, max_length=FIELDS_MOST)
    not_before: float | str | None = Field(default=None)
    expires: float | str | None = Field(default=None)
    labels: list[Label] | None = Field(default=None, max_length=LABELS_MOST)


State = Literal["queued", "held", "deferred", "running", "completed", "failed", "cancelled"]


class StageView(BaseModel):
    """A status that the engine reported. at: when it began; it lasts until the next one, or the end of the attempt."""

    status: str
    at: float


class Tried(BaseModel):
    """An attempt that failed. stage: where; message: one line. started, at: when it began and ended, seconds since
    1970; null where that is not known. stages: the statuses in order, at most 64; stages_left_out: how many came after
    them."""

    attempt: int
    kind: str
    stage: str
    message: str
    worker: str
    started: float | None
    at: float | None
    stages: list[StageView] = []
    stages_left_out: int = 0


class JobView(BaseModel):
    """The state of a job. Times: seconds since 1970. percent: 0-100. status: as the engine reports it; ahead: number of
    jobs before it in the queue. kind, reason: of its failure, the reason in one line; while it goes on, of the last
    attempt that failed. started: when the attempt began that runs, or in which the job ended; null while it waits and
    when it ended so (cancelled, expired or refused before it began). stages, stages_left_out: of that attempt, as in
    `tried`. tried: the attempts that failed. stages and tried are empty in lists."""

    id: str
    engine: str
    state: State
    status: str
    percent: float
    message: str
    attempt: int
    created: float | None = None
    started: float | None = None
    finished: float | None = None
    ahead: int | None = None
    kind: str = ""
    reason: str = ""
    failure: dict[str, Any] | None = None
    stages: list[StageView] = []
    stages_left_out: int = 0
    tried: list[Tried] = []
    tags: list[str] = []
    note: str = ""
    rerun_of: str = ""


class Outcome(JobView):
    """A job that has ended. value: the result of the engine; files: each with name, size, sha256, url and save_as, its
    name for the client's disk."""

    value: Any = None
    files: list[dict[str, Any]] = []
    cached: bool = False

    def to_map(self) -> dict[str, Any]:
        """Plain values; the result is as the engine gave it, however deep it is."""
        return {**self.model_dump(exclude={"value"}), "value": self.value}


class JobList(BaseModel):
    """jobs: running jobs, waiting ones in their order, then ended ones, the latest first. total: of all that match, but
    for `unread` ended jobs that the gateway has still to read after its start; they are not listed either."""

    jobs: list[JobView]
    total: int
    unread: int = 0


class JobWalk(BaseModel):
    """One page of jobs, newest first. next: `after` of the next page, "" on the last one. trouble: why it was slow.
    unread: how many jobs could not be read in time, the oldest; they may be missing: ask again."""

    jobs: list[JobView]
    next: str
    trouble: str = ""
    unread: int = 0


class Cancelled(BaseModel):
    """A job after a cancel; a running job is still running until its worker has stopped."""

    id: str
    state: State


class Input(BaseModel):
    """A sound, picture or video that a job was given. name: the client's, of an upload; url: to fetch it."""

    name: str
    kind: Literal["image", "audio", "video"]
    url: str


class Origin(BaseModel):
    """What a job was submitted with. left_out: parameter -> why its value is not here, such as a secret; "" stands for
    all. uploads: of parameters that are uploaded files. inputs: of parameters that are sounds, pictures or videos which
    can be fetched. items: how many calls a map job has."""

    id: str
    engine: str
    params: dict[str, Any]
    left_out: dict[str, str]
    uploads: dict[str, Uploaded] = {}
    inputs: dict[str, Input] = {}
    terms: dict[str, Any] = {}
    items: int | None = None
    rerun_of: str = ""


class EditedWord(Strict):
    """A word of a corrected segment. start, end: seconds. probability: null when a person has written it."""

    word: str = Field(min_length=1, max_length=200)
    start: float = Field(ge=0)
    end: float = Field(ge=0)
    probability: float | None = None
    speaker: str | None = None


class EditedSegment(Strict):
    """The text of a corrected segment, and its words."""

    text: str = Field(max_length=20_000)
    words: list[EditedWord] = Field(default=[], max_length=10_000)


class Edits(Strict):
    """Corrections of a transcript. version: of what they are based on. names: of speakers, spk0 → its name. segments:
    number of a segment, from 0 → how it reads now."""

    version: int = Field(ge=0)
    names: dict[str, Annotated[str, Field(min_length=1, max_length=200)]] = Field(default={}, max_length=1000)
    segments: dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,6})$")], EditedSegment] = {}


class JobIds(Strict):
    """Some jobs."""

    ids: list[Id] = Field(min_length=1, max_length=1000)


class Refusal(BaseModel):
    """A job with which it could not be done, and why."""

    id: str
    message: str


class BulkDone(BaseModel):
    """done: ids of the jobs with which it was done; refused: the others."""

    done: list[str]
    refused: list[Refusal]


class Archive(BaseModel):
    """The results of some jobs as one ZIP archive. url: to fetch it, for an hour; bytes: of its files, before they are
    packed; refused: the jobs that are not in it."""

    url: str
    files: int
    bytes: int
    refused: list[Refusal]


class EngineAbout(BaseModel):
    """An engine. workers: configured slots; schema: JSON schema of its parameters; described: whether doc and schema
    are known, which they are once one of its workers has started."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str
    workers: int
    described: bool
    doc: str
    parameters: dict[str, Any] | None = Field(alias="schema")


class Engines(BaseModel):
    """The engines that there are."""

    engines: list[EngineAbout]


class Stretch(BaseModel):
    """The jobs of one engine that ended from `at` (seconds since 1970) on. ran: how many of them had begun; wait_s,
    run_s: their mean; wait_most_s, run_most_s: the longest."""

    engine: str
    at: int
    completed: int
    failed: int
    cancelled: int
    ran: int
    wait_s: float
    wait_most_s: float
    run_s: float
    run_most_s: float


class Stats(BaseModel):
    """begin: seconds since 1970; step_s: length of each stretch; stretches: those with jobs, the oldest first. unread:
    how many records the gateway has still to read."""

    begin: int
    step_s: int
    stretches: list[Stretch]
    unread: int


class Example(BaseModel):
    """An example of what an engine makes. files: names of its inputs. missing: why it cannot be tried here, or ""."""

    name: str
    engine: str
    files: list[str]
    missing: str


class Examples(BaseModel):
    """The examples that there are."""

    examples: list[Example]


class Log(BaseModel):
    """A log of the pool. name: of a slot, or supervisor. bytes: its length now."""

    name: str
    bytes: int


class Logs(BaseModel):
    """The logs that there are."""

    logs: list[Log]


class Problem(BaseModel):
    """An error. type: its class; path: the key that is wrong, "" when no key is; data: the job, when one failed."""

    type: str
    message: str = Field(min_length=1)
    path: str = ""
    data: dict[str, Any] | None = None


class Failed(BaseModel):
    """An error response."""

    error: Problem


class OpenAIProblem(BaseModel):
    """An error in the format of OpenAI's API."""

    message: str = Field(min_length=1)
    type: str
    param: str | None
    code: str | None


class OpenAIFailed(BaseModel):
    """An error response in the format of OpenAI's API."""

    error: OpenAIProblem


def responses(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route: these statuses have bodies of this model."""
    return {status: {"model": model, "description": _DESCRIPTIONS[status]} for status in statuses}


_DESCRIPTIONS = {
    202: "The job is not over",
    400: "The request is malformed",
    401: "The token is missing or wrong",
    403: "The path or the origin is not allowed",
    404: "Not found",
    408: "The request arrived too slowly",
    409: "The job is in another state, or the id is taken",
    410: "The job was cancelled",
    413: "Too large",
    415: "Unsupported media type",
    416: "No such range",
    422: "The input cannot be used",
    429: "Too many requests",
    502: "The engine failed",
    503: "Temporarily unavailable: try again later",
    504: "Timed out",
}
