"""What goes over the wire, as models: they check what comes, and are the schemas of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pool.format.names import MAX_ATTEMPTS, PRIORITY_HIGHEST, PRIORITY_LOWEST
from pool.format.trace_context import STATE_CHARS
from pool.job.terms import DEPENDENCIES_MOST, FIELDS_MOST, NOTE_CHARS, TAGS_MOST, TIMEOUT_LEAST_S, TIMEOUT_MOST_S

_SWITCHES = {"0": 0, "1": 1, "true": 1, "false": 0, "": 0}


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


Switch = Annotated[Literal[0, 1], BeforeValidator(_switch)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", max_length=100)]
Kind = Literal["infrastructure", "resource", "engine", "timeout"]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]


class Strict(BaseModel):
    """Unknown keys are refused, and no type is guessed."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Generate(Strict):
    """Who shall say what, and where the video goes."""

    audio_path: PathText = Field(description="what is said: a file under the allowed folders, or tempfile:<file_id>")
    video_path: PathText = Field(description="the template: video or picture with the face of the speaker")
    save_path: PathText = Field(description="the video that is written, .mp4; a folder: <task_id>.mp4 in it")
    watermark: Switch = Field(default=0, description="1: a mark in the lower right corner")
    digital_auth: Switch = Field(default=0, description="1: the mark of a digital human in the upper right corner")
    task_id: Id | None = Field(default=None, description="your name for it; the same again is the same job")


class Generated(BaseModel):
    save_path: str
    task_id: str


class Envelope(BaseModel):
    """What the digital-human service answers. code: the HTTP status; data: null when it failed."""

    code: int
    message: str = Field(min_length=1)
    data: Generated | None = None


class FailedEnvelope(BaseModel):
    code: int
    message: str = Field(min_length=1)
    data: dict[str, Any] | None = None


class Health(BaseModel):
    status: Literal["ok", "starting", "down"]
    service: str
    message: str = ""


class Uploaded(BaseModel):
    success: Literal[True] = True
    file_id: str
    file_type: Literal["image", "audio", "video"]
    original_name: str


class UploadFailed(BaseModel):
    success: Literal[False] = False
    message: str = Field(min_length=1)


class Submit(Strict):
    """A job for an engine; GET /engines tells its parameters."""

    params: dict[str, Any] = Field(
        default_factory=dict, description="paths: under the allowed folders, or tempfile:<id>"
    )
    id: Id | None = Field(default=None, description="your name for it; the same again is the same job")
    priority: int = Field(default=0, ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST, description="higher runs first")
    timeout_s: float | None = Field(
        default=None, ge=TIMEOUT_LEAST_S, le=TIMEOUT_MOST_S, description="of one attempt, instead of the engine's"
    )
    retry_times: int | None = Field(default=None, ge=0, lt=MAX_ATTEMPTS, description="instead of the engine's")
    retry_on: list[Kind] | None = Field(default=None, description="kinds of failure, instead of the engine's")
    tags: list[str] = Field(default_factory=list, max_length=TAGS_MOST, description="words to find it by")
    note: str = Field(default="", max_length=NOTE_CHARS, description="a few words for people")
    log_context: dict[str, str | bool | int | float] | None = Field(
        default=None, max_length=FIELDS_MOST, description="names and values in each line that its engine logs"
    )
    traceparent: str = Field(default="", max_length=STATE_CHARS, description="W3C; by default that of the request")
    tracestate: str = Field(default="", max_length=STATE_CHARS, description="W3C; beside traceparent")
    not_before: float | str | None = Field(
        default=None, description="waits until then: seconds from now, such as 2h, or a date and time with a time zone"
    )
    expires: float | str | None = Field(default=None, description="fails if not begun by then; as not_before")
    depends_on: list[Id] = Field(default=[], max_length=DEPENDENCIES_MOST, description="jobs that must complete before")


class Rerun(Strict):
    """What is to be different from the old job; what is not given stays."""

    params: dict[str, Any] = Field(default_factory=dict, description="secret ones must be given again")
    without: list[str] = Field(default_factory=list, description="parameters to leave out")
    id: Id | None = Field(default=None, description="your name for the new job")
    priority: int | None = Field(default=None, ge=PRIORITY_LOWEST, le=PRIORITY_HIGHEST)
    timeout_s: float | None = Field(default=None, ge=TIMEOUT_LEAST_S, le=TIMEOUT_MOST_S)
    retry_times: int | None = Field(default=None, ge=0, lt=MAX_ATTEMPTS)
    retry_on: list[Kind] | None = Field(default=None)
    tags: list[str] | None = Field(default=None, max_length=TAGS_MOST)
    note: str | None = Field(default=None, max_length=NOTE_CHARS)
    log_context: dict[str, str | bool | int | float] | None = Field(default=None, max_length=FIELDS_MOST)
    not_before: float | str | None = Field(default=None)
    expires: float | str | None = Field(default=None)


State = Literal["queued", "held", "deferred", "running", "completed", "failed", "cancelled"]


class JobView(BaseModel):
    """Where a job stands. Times are seconds since 1970. status: the engine's word; ahead: waiting before it."""

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
    failure: dict[str, Any] | None = None
    tags: list[str] = []
    note: str = ""
    rerun_of: str = ""


class Outcome(JobView):
    """A job that has ended. value: what the engine returned; files: each with name, size, sha256 and url."""

    value: Any = None
    files: list[dict[str, Any]] = []
    cached: bool = False


class JobList(BaseModel):
    """jobs: those that run, those that wait in their order, those that ended, the last one first."""

    jobs: list[JobView]
    total: int


class JobWalk(BaseModel):
    """A page, newest first. next: `after` of the following page, "" when this was the last. trouble: why slow."""

    jobs: list[JobView]
    next: str
    trouble: str = ""


class Cancelled(BaseModel):
    id: str
    state: State


class Problem(BaseModel):
    """type: the kind of error; path: the key that is wrong."""

    type: str
    message: str = Field(min_length=1)
    path: str = ""
    data: dict[str, Any] | None = None


class Failed(BaseModel):
    error: Problem


class OpenAIProblem(BaseModel):
    message: str = Field(min_length=1)
    type: str
    param: str | None
    code: str | None


class OpenAIFailed(BaseModel):
    error: OpenAIProblem


def responses(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses have bodies of this model."""
    return {status: {"model": model, "description": _WORDS[status]} for status in statuses}


_WORDS = {
    202: "Not over yet",
    400: "The request is not acceptable",
    401: "No token, or a wrong one",
    403: "Outside of what is allowed",
    404: "Not there",
    408: "The request came too slowly",
    409: "It is in another state, or the id is taken",
    410: "It was cancelled",
    413: "Too large",
    415: "Not a type that is known here",
    416: "No such range",
    422: "The input cannot be used",
    429: "Too many requests",
    502: "The engine failed",
    503: "Not now: try again later",
    504: "It took too long",
}
