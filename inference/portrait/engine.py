"""The engine: a picture and a recording in, a talking portrait out.

face_detecting   the picture is read, its face found and judged                         0 – 5 %
inference        the sound becomes mouth shapes, then frame after frame is painted      5 – 96 %
merging_audio    the pieces are joined, the sound added                                96 – 100 %
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from inference import cuda, extras, media, weights
from inference.base import Context, EngineError, Files, InputError, read_options, read_params
from inference.encode import BEST_CRF, CRF_RAISED, SD, Encoding
from inference.face.model import FaceModel
from inference.finding import Finding, tried
from inference.join import join
from inference.lipsync import marks, sound
from inference.lipsync.engine import Steps, diagnose_gpu, threads_here
from inference.lipsync.frames import Frame
from inference.lipsync.pipeline import Render
from inference.live import Live
from inference.paths import absolute, check_output
from inference.portrait import reference
from inference.portrait.params import Options
from inference.portrait.params import Params as PortraitParams
from inference.portrait.picture import check_picture
from inference.portrait.work import Backend, Work, fitted, frames_of, seed_of

PIPELINE_VERSION = 9  #: raise it when the same input may give another video; part of the fingerprint
FOUND, PAINTED = 5.0, 96.0  #: per cent after each of the first two statuses
WHOLE = 10_000  #: steps into which a share of the work is counted
MIN_DURATION_S = 0.04
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
METADATA = {
    "mesh": {
        "comment": "AI-generated: a still picture was set in motion to a recording (filepool portrait)",
        "digital_source_type": _SOURCE + "compositeWithTrainedAlgorithmicMedia",
    },
    "echomimic": {
        "comment": "AI-generated: made by EchoMimic from a still picture and a recording (filepool portrait)",
        "digital_source_type": _SOURCE + "trainedAlgorithmicMedia",
    },
}


class Portrait:
    """A still picture that talks. See :class:`PortraitParams` for what a job may ask."""

    Params: ClassVar[type[PortraitParams]] = PortraitParams

    def __init__(self) -> None:
        self._options = Options()
        self._backend: Backend | None = None
        self._model: FaceModel | None = None
        self._face_file = Path()
        self._device = "cpu"
        self._threads = 1
        self._fingerprint = ""

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Load the models. Raises :class:`EngineError` naming the file or key at fault."""
        extras.require("portrait")
        self._options = read_options(Options, options)
        media.ffmpeg_binary(self._options.ffmpeg)
        marks.require(self._options.watermark, "watermark")
        marks.require(self._options.digital_auth, "digital_auth")
        self._device, self._threads = device, self._options.threads or threads_here()
        self._face_file = weights.find("face-landmarker/face_landmarker.task", self._options.face_model)
        self._model = FaceModel(self._face_file)
        if self._options.backend == "echomimic":
            from inference.portrait.echomimic_backend import EchoMimicBackend

            self._backend = EchoMimicBackend(self._options, device)
        else:
            from inference.portrait.mesh_backend import MeshBackend

            self._backend = MeshBackend(self._options, device, self._model)

    def warmup(self) -> None:
        """Every model once, so that the first job meets no first-call cost."""
        model, backend = self._loaded()
        model.detect(np.zeros((256, 256, 3), np.uint8))
        backend.warmup()

    @staticmethod
    def diagnose(device: str, options: Mapping[str, object]) -> Iterator[Finding]:
        """Look at what the engine would load, without loading it. Raises :class:`EngineError` for wrong options."""
        chosen = read_options(Options, options)
        yield tried("ffmpeg", lambda: media.ffmpeg_binary(chosen.ffmpeg))
        yield tried("face model", lambda: weights.find("face-landmarker/face_landmarker.task", chosen.face_model))
        if chosen.backend == "mesh":
            yield tried("whisper", lambda: weights.find_model("whisper-base", chosen.whisper))
        yield from diagnose_gpu(device, chosen.encoder, chosen.ffmpeg)

    def check(self, params: Mapping[str, object]) -> PortraitParams:
        """Types, files and headers, in about 0.1 s; paths come back absolute. Raises :class:`InputError`."""
        job = read_params(PortraitParams, params)
        picture = check_picture(job.image).path
        about = media.probe(job.audio, ffmpeg=self._options.ffmpeg)
        if not about.has_audio:
            what = "a picture or a video without sound" if about.has_video else "a file without an audio stream"
            raise InputError(f"audio: {about.path} is {what}", hint="there is nothing to say in it")
        if about.duration_s is not None and about.duration_exact and about.duration_s < MIN_DURATION_S:
            raise InputError(f"audio: {about.path} lasts {about.duration_s:.3f} s: less than one frame")
        if about.duration_s is not None and self._backend is not None:
            self._backend.check_length(frames_of(job, about.duration_s)[0])
        inputs = {picture: "picture", about.path: "recording"}
        output = None if job.output is None else check_output(job.output, inputs)
        return job.model_copy(update={"image": picture, "audio": about.path, "output": output})

    def run(self, params: PortraitParams, context: Context) -> dict[str, Any]:
        """Make one video; the result tells its size, length, seed and whatever was not done as asked."""
        started, steps = time.monotonic(), Steps(context)
        task = self._read(params, context.job_id, steps)
        film = self._film(task, context, steps)
        finished = time.monotonic()
        steps.part(1, 1)
        job, face, render = task.work.job, task.work.reference, film.render
        return {
            "output": str(job.output) if job.output is not None else "output.mp4",
            "width": render.encoding.width,
            "height": render.encoding.height,
            "fps": job.fps,
            "frames": task.work.frames,
            "duration_s": round(task.seconds, 3),
            "audio_s": round(task.heard.seconds, 3),
            "seed": task.work.seed,
            "backend": self._options.backend,
            "encoder": render.codec,
            "faces": face.faces,
            "shown": [face.shown.x, face.shown.y, face.shown.width, face.shown.height],
            "seconds": {
                "prepare": round(film.prepared - started, 3),
                "render": round(film.rendered - film.prepared, 3),
                "merge": round(finished - film.rendered, 3),
            },
            "warnings": [*task.notes, *filter(None, [render.note, film.note])],
        }

    def _read(self, params: PortraitParams, job_id: str, steps: Steps) -> Task:
        """Check the job once more, find the face, read the sound."""
        (model, backend), options = self._loaded(), self._options
        steps.begin("face_detecting", 0.0, FOUND, "reading the picture")
        job = self.check(params.model_dump())
        face = reference.load(job, model)
        steps.begin("face_detecting", FOUND * 0.6, FOUND, "reading the sound")
        heard = sound.read(job.audio, options.max_audio_s, steps.check, options.ffmpeg)
        frames, notes = frames_of(job, heard.seconds)
        backend.check_length(frames)
        notes = [*face.warnings, *notes, *_unused(job, backend)]
        notes += [f"audio: {note}" for note in heard.notes]
        if job.crf < BEST_CRF:
            notes.append(CRF_RAISED)
        work = Work(job, face, fitted(heard.samples, frames, job.fps), frames, seed_of(job, job_id))
        return Task(work, heard, notes)

    def _film(self, task: Task, context: Context, steps: Steps) -> Film:
        """Paint, encode, join; the output lies where the context wants it."""
        work, options, scratch = task.work, self._options, context.scratch
        frames, picture = work.frames, work.reference.picture
        steps.begin("inference", FOUND, PAINTED, f"{frames} frames")

        def tell(share: float) -> None:
            steps.check()
            steps.part(round(share * WHOLE), WHOLE)

        said, wanted, ffmpeg = task.heard, work.job.stream, options.ffmpeg
        with (
            sound.Track(said, scratch, task.seconds, ffmpeg, growing=wanted) as track,
            Live(context.stream if wanted else None, track.early, task.seconds) as live,
        ):
            painter, done = self._loaded()[1].prepare(work, scratch, steps.check, tell)
            prepared = time.monotonic()
            encoding, still = self._encoding(work.job, picture, scratch), Still(picture)
            order = np.zeros(frames, np.int32)
            render = Render(still, order, painter, encoding, folder=scratch, workers=self._threads)
            live.follow(render.segments)
            parts = render.run(steps.check, lambda count: tell(done + (1 - done) * count / frames))
            rendered = time.monotonic()
            steps.begin("merging_audio", PAINTED, 100.0, "adding the sound")
            output, heard = context.output(work.job.output, "output.mp4"), track.finish(steps.check)
            live.finish(steps.check)
            metadata = METADATA[options.backend]
            join(parts, output, heard, metadata=metadata, check=steps.check, ffmpeg=options.ffmpeg)
        return Film(render, prepared, rendered, live.note)

    def files(self, params: PortraitParams) -> Files:
        """What the job reads and writes."""
        written = () if params.output is None else (absolute(params.output),)
        return Files(inputs=(absolute(params.image), absolute(params.audio)), outputs=written)

    def fingerprint(self) -> str:
        """Changes with the weights and with every option that may change a video."""
        if not self._fingerprint:
            _, backend = self._loaded()
            options = self._options
            own = [path for path in (options.watermark, options.digital_auth) if path is not None]
            shape = {
                "version": PIPELINE_VERSION,
                **backend.settings(),
                "encoder": [options.encoder, options.preset],
                "weights": weights.fingerprint([self._face_file, *backend.files()]),
                "marks": weights.fingerprint(own) if own else "",
            }
            self._fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return self._fingerprint

    def memory(self) -> dict[str, int]:
        """Bytes of the GPU that are held: what ``recycle.gpu_memory_mb`` limits and ``status`` shows."""
        return {"gpu_bytes": cuda.held(self._device)}

    def close(self) -> None:
        """Free the models."""
        if self._backend is not None:
            self._backend.close()
        self._backend, self._model = None, None

    def _loaded(self) -> tuple[FaceModel, Backend]:
        if self._backend is None or self._model is None:
            raise EngineError("the engine is not loaded", hint="call load() first")
        return self._model, self._backend

    def _encoding(self, job: PortraitParams, picture: Frame, scratch: Path) -> Encoding:
        options, size = self._options, (picture.shape[1], picture.shape[0])
        corners = marks.overlays(
            size,
            scratch,
            watermark=bool(job.watermark),
            digital_auth=bool(job.digital_auth),
            watermark_path=options.watermark,
            digital_auth_path=options.digital_auth,
        )
        return Encoding(
            *size,
            fps=job.fps,
            crf=max(BEST_CRF, job.crf),
            preset=options.preset,
            encoder=options.encoder,
            color=SD,
            overlays=corners,
            growing=job.stream,
            ffmpeg=options.ffmpeg,
        )


@dataclass(frozen=True)
class Task:
    """One job once its files have been read."""

    work: Work
    heard: sound.Sound
    notes: list[str]  #: what was not done as asked

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.work.frames / self.work.job.fps


@dataclass(frozen=True)
class Film:
    """A finished picture, and when its parts were done, in seconds of the monotonic clock."""

    render: Render
    prepared: float
    rendered: float
    note: str  #: why there is no whole stream, although one was asked for


@dataclass(frozen=True)
class PictureSize:
    """Pixels of a picture."""

    width: int
    height: int


@dataclass(frozen=True)
class Still:
    """A picture in the place of a template video."""

    picture: Frame

    @property
    def info(self) -> PictureSize:
        """Its size in pixels."""
        return PictureSize(self.picture.shape[1], self.picture.shape[0])

    def read(self, order: NDArray[np.int32], threads: int | None = None) -> Iterator[Frame]:
        """The picture, (H, W, 3) BGR, as often as the order is long."""
        for _ in range(len(order)):
            yield self.picture


def _unused(job: PortraitParams, backend: Backend) -> list[str]:
    """What the job asks for that means nothing to this backend."""
    given = [name for name in ("steps", "cfg") if getattr(job, name) is not None]
    if given and not backend.generative:
        return [f"{' and '.join(given)} mean nothing to the mesh backend and were not used"]
    return ["motion means nothing to a generative backend"] if backend.generative and job.motion != 1 else []
