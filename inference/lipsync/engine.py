"""The engine: a recording and a template video in, the person in it saying that recording out.

    face_detecting   the sound is read, the face followed through the template (kept for the next job with it)
    inference        the sound becomes mouth shapes, then frame after frame is painted and encoded
    merging_audio    the segments are joined, the sound added

Percentages are shares of the work of the whole job, estimated from its numbers of frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import cuda, extras, media, weights
from inference.base import Context, EngineError, Files, InputError, read_options, read_params
from inference.encode import BEST_CRF, CRF_RAISED, Encoding, nvenc_works
from inference.face.analysis import MAX_FRAMES, Decoding, TemplateAnalysis, cached
from inference.face.model import FaceModel
from inference.face.track import Choice
from inference.finding import Finding, tried
from inference.join import join
from inference.kept import Shelf
from inference.lipsync import marks, sound
from inference.lipsync.frames import Template, loop
from inference.lipsync.params import INSTALLED_WAV2LIP, Options
from inference.lipsync.params import Backend as BackendName
from inference.lipsync.params import Params as LipSyncParams
from inference.lipsync.pipeline import HEAD_START_S, Render
from inference.lipsync.work import Backend, Brush, Camera, Picture, Shot, Work
from inference.live import Live, Segment, early
from inference.paths import absolute, check_output
from inference.probe import VideoInfo, probe_video

PIPELINE_VERSION = 11  #: raise it when the same input may give another video; part of the fingerprint
MIN_AUDIO_S = 0.1
SMALL = 1920 * 1088  #: pixels of a frame up to which one core decodes faster than the face is found
#: work per megapixel and frame, in milliseconds of one core: only their proportions matter
FOLLOW_MS, LOOK_MS, PAINT_MS = 12.0, 4.0, 22.0
MERGE_SHARE = 0.02  #: of all work
SIGN_OF_LIFE_S = 1.0
SPANS = 5  #: of frames that are left alone, by their times in a warning
METADATA = {
    "comment": "AI-generated: the lip movements in this video were synthesised from its sound (filepool lipsync)",
    "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}


def diagnose_gpu(device: str, encoder: str, ffmpeg: str | None) -> Iterator[Finding]:
    """Whether torch can use the GPU that is asked for, and ffmpeg its encoder."""
    if cuda.is_gpu(device):
        yield tried("torch", lambda: cuda.described(device))
    if encoder == "nvenc":
        note = nvenc_works(ffmpeg)
        yield Finding("encoder nvenc", not note, note or "works", "videos are encoded by the processor" if note else "")


class LipSync:
    """A person in a video says something else. See :class:`LipSyncParams` for what a job may ask."""

    Params: ClassVar[type[LipSyncParams]] = LipSyncParams

    def __init__(self) -> None:
        self._options = Options()
        self._model: FaceModel | None = None
        self._face_file: Path | None = None
        self._backends: dict[BackendName, Backend] = {}
        self._device = "cpu"
        self._threads = 1
        self._fingerprint = ""

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Load the models, 1 to 3 s on CPU. Raises :class:`EngineError` naming the file or key at fault."""
        extras.require("lipsync")
        self._options = chosen = read_options(Options, options)
        media.ffmpeg_binary(chosen.ffmpeg)
        marks.require(chosen.watermark, "watermark")
        marks.require(chosen.digital_auth, "digital_auth")
        self._device, self._threads = device, chosen.threads or threads_here()
        cv2.setNumThreads(1)  # segments run side by side; two threads in one network cost twice and gain nothing
        others: dict[BackendName, object] = {
            "wav2lip": chosen.checkpoint,
            "musetalk": chosen.musetalk,
            "heygem": chosen.heygem,
        }
        names = {chosen.backend, *(name for name, option in others.items() if option is not None)}
        if names != {"heygem"}:  # which follows faces its own way
            self._face_file = weights.find("face-landmarker/face_landmarker.task", chosen.face_model)
            self._model = FaceModel(self._face_file)
        self._backends = {name: self._make(name) for name in sorted(names)}  # jobs may ask for any of them

    def _make(self, name: BackendName) -> Backend:
        if name == "wav2lip":
            from inference.lipsync.wav2lip import Wav2LipBackend

            return Wav2LipBackend(self._options, self._device)
        if name == "heygem":
            from inference.lipsync.heygem import HeyGemBackend

            return HeyGemBackend(self._options)
        if name == "musetalk":
            extras.require("musetalk")
            with extras.needed("musetalk"):
                from inference.lipsync.musetalk.backend import MuseTalkBackend

                return MuseTalkBackend(self._options, self._device)
        from inference.lipsync.mesh_backend import MeshBackend

        assert self._model is not None
        return MeshBackend(self._options, self._device, self._model)

    def warmup(self) -> None:
        """Every model once, so that the first job meets no first-call cost."""
        if self._model is not None:
            self._model.detect(np.zeros((256, 256, 3), np.uint8))
        for backend in self._backends.values():
            backend.warmup()

    @staticmethod
    def diagnose(device: str, options: Mapping[str, object]) -> Iterator[Finding]:
        """Look at what the engine would load, without loading it. Raises :class:`EngineError` for wrong options."""
        chosen = read_options(Options, options)
        yield tried("ffmpeg", lambda: media.ffmpeg_binary(chosen.ffmpeg))
        if chosen.backend == "heygem" or chosen.heygem is not None:
            from inference.lipsync import heygem

            yield from heygem.diagnose(chosen)
        if chosen.backend == "heygem":
            return
        yield tried("face model", lambda: weights.find("face-landmarker/face_landmarker.task", chosen.face_model))
        if chosen.backend == "mesh":
            yield tried("whisper", lambda: weights.find_model("whisper-base", chosen.whisper))
        if chosen.backend == "wav2lip":
            yield tried("checkpoint", lambda: weights.find(INSTALLED_WAV2LIP, chosen.checkpoint))
        if chosen.backend == "musetalk" or chosen.musetalk is not None:
            from inference.lipsync.musetalk import layout

            yield from layout.diagnose(chosen.musetalk)
        yield from diagnose_gpu(device, chosen.encoder, chosen.ffmpeg)

    def check(self, params: Mapping[str, object]) -> LipSyncParams:
        """Types, files and headers, in 0.2 to 0.5 s; paths come back absolute. Raises :class:`InputError`."""
        job, _ = self._checked(params)
        return job

    def run(self, params: LipSyncParams, context: Context) -> dict[str, Any]:
        """Make one video."""
        started, steps, ffmpeg = time.monotonic(), Steps(context), self._options.ffmpeg
        task = self._read(params, steps)
        backend = self._backends[task.backend]
        said, wanted = task.heard, task.job.stream
        scratch, seconds = context.scratch, said.seconds
        with (
            sound.Track(said, scratch, seconds, ffmpeg, growing=wanted) as track,
            Live(context.stream if wanted else None, track.early, seconds) as live,
        ):
            if isinstance(backend, Camera):
                picture = self._shoot(task, backend, context, steps, live)
            else:
                assert isinstance(backend, Brush)
                picture = self._paint(task, backend, context, steps, live)
            rendered = time.monotonic()
            steps.begin("merging_audio", 100 * (1 - MERGE_SHARE), 100.0, "adding the sound")
            output, heard = context.output(task.job.output, "output.mp4"), track.finish(steps.check)
            live.finish(steps.check)
            join(picture.parts, output, heard, metadata=METADATA, check=steps.check, ffmpeg=ffmpeg)
        finished = time.monotonic()
        steps.part(1, 1)
        return {
            "output": str(task.job.output) if task.job.output is not None else "output.mp4",
            "width": picture.width,
            "height": picture.height,
            "fps": picture.fps,
            "frames": picture.frames,
            "duration_s": round(picture.frames / picture.fps, 3),
            "audio_s": round(task.heard.seconds, 3),
            "backend": task.backend,
            "encoder": picture.codec,
            **picture.about,
            "seconds": {
                "prepare": round(picture.prepared - started, 3),
                "render": round(rendered - picture.prepared, 3),
                "merge": round(finished - rendered, 3),
            },
            "warnings": [*_warnings(task), *picture.warnings, *filter(None, [live.note])],
        }

    def _read(self, params: LipSyncParams, steps: Steps) -> Task:
        """Check the job once more, and read its sound."""
        if not self._backends:
            raise EngineError("the engine is not loaded", hint="call load() first")
        steps.begin("face_detecting", 0.0, 0.0, "reading the sound")
        job, info = self._checked(params.model_dump())
        heard = sound.read(job.audio, self._options.max_audio_s, steps.check, self._options.ffmpeg)
        frames = max(1, round(heard.seconds * info.fps))
        return Task(job, info, heard, frames, Shares(info, frames), job.backend or self._options.backend)

    def _follow(self, task: Task, cache: Path, steps: Steps) -> TemplateAnalysis:
        """The face in the template, followed now or by an earlier job."""
        info, options = task.info, self._options
        assert self._model is not None
        steps.begin("face_detecting", 0.0, task.shares.follow, "following the face")
        threads = 1 if info.width * info.height <= SMALL else None  # it keeps up, and costs less
        return cached(
            Shelf(cache / "analyses", options.cache_mb << 20),
            info,
            self._model,
            steps.part,
            choice=Choice.of(task.job.face, info.shrunk),
            frames=task.frames,
            check=steps.check,
            decoding=Decoding(threads=threads, ffmpeg=options.ffmpeg),
        )

    def _paint(self, task: Task, backend: Brush, context: Context, steps: Steps, live: Live) -> Picture:
        """Follow the face, paint over the template's frames, encode."""
        analysis = self._follow(task, context.cache, steps)
        if not analysis.clear.any():
            raise InputError(
                f"video: something is before the mouth in all {analysis.frames} frames of {task.job.video}",
                hint="use a template whose mouth is to be seen: without a mask, and not behind a hand or a microphone",
            )
        info, ffmpeg, scratch = task.info, self._options.ffmpeg, context.scratch
        steps.begin("face_detecting", task.shares.follow, task.shares.look, "looking at the mouth")
        order = loop(task.frames, analysis.frames)
        warned: list[str] = []
        with Template(info, analysis.frames, ffmpeg) as template:
            # A job that is watched waits for its first second: what belongs to later ones is decoded beside them.
            template.prefetch(order, round(2 * HEAD_START_S * info.fps) if task.job.stream else None)
            work = Work(
                info=info,
                analysis=analysis,
                template=template,
                order=order,
                samples=task.heard.samples,
                cache=context.cache,
                check=steps.check,
                stop=context.check,
                looked=lambda count: steps.part(count, analysis.frames),
                warn=warned.append,
                watched=task.job.stream,
                persona=task.job.persona,
            )
            painter = backend.painter(work)
            prepared = time.monotonic()
            steps.begin("inference", task.shares.look, 100 * (1 - MERGE_SHARE), f"{task.frames} frames")
            encoding = self._encoding(task, (info.width, info.height), info.fps, scratch)
            render = Render(template, order, painter, encoding, folder=scratch, workers=self._threads)
            live.follow(render.segments)
            parts = render.run(steps.check, lambda done: steps.part(done, task.frames))
        found = int(analysis.found.sum())
        return Picture(
            parts=parts,
            width=info.width,
            height=info.height,
            fps=info.fps,
            frames=task.frames,
            codec=render.codec,
            about={"template_frames": analysis.frames, "template_frames_with_face": found},
            prepared=prepared,
            warnings=(*_seen(analysis, render.note), *warned),
        )

    def _shoot(self, task: Task, backend: Camera, context: Context, steps: Steps, live: Live) -> Picture:
        """Have the backend make the picture its own way."""
        looked = 10.0  #: per cent, before the first frame

        def begin(status: str, message: str) -> None:
            first = status == "face_detecting"
            steps.begin(status, 0.0 if first else looked, looked if first else 100 * (1 - MERGE_SHARE), message)

        place = context.scratch / "picture.mp4"
        live.follow([Segment(early(place), 0.0)])
        return backend.shoot(
            Shot(
                audio=task.job.audio,
                video=task.job.video,
                info=task.info,
                seconds=task.heard.seconds,
                context=context,
                encoding=lambda width, height, fps: self._encoding(task, (width, height), fps, context.scratch),
                begin=begin,
                part=steps.part,
                check=steps.check,
                picture=place,
            )
        )

    def files(self, params: LipSyncParams) -> Files:
        """What the job reads and writes."""
        written = () if params.output is None else (absolute(params.output),)
        read = [params.audio, params.video, *filter(None, [params.persona])]
        return Files(inputs=tuple(map(absolute, read)), outputs=written)

    def fingerprint(self) -> str:
        """Changes with the weights and with every option that may change a video."""
        if not self._fingerprint:
            options = self._options.model_dump(mode="json", exclude={"threads", "cache_mb", "ffmpeg"})
            backends = self._backends.values()
            files = [path for backend in backends if isinstance(backend, Brush) for path in backend.files()]
            files += [self._face_file] if self._face_file is not None else []
            options["cameras"] = [backend.fingerprint() for backend in backends if isinstance(backend, Camera)]
            shape = {"version": PIPELINE_VERSION, "options": options, "weights": weights.fingerprint(files)}
            self._fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return self._fingerprint

    def memory(self) -> dict[str, int]:
        """Bytes of the GPU that are held: what ``recycle.gpu_memory_mb`` limits and ``status`` shows."""
        return {"gpu_bytes": cuda.held(self._device)}

    def close(self) -> None:
        """Free the models."""
        for backend in self._backends.values():
            backend.close()
        self._backends, self._model = {}, None

    def _checked(self, params: Mapping[str, object]) -> tuple[LipSyncParams, VideoInfo]:
        job = read_params(LipSyncParams, params)
        self._check_backend(job)
        about = media.probe(job.audio, "audio", self._options.ffmpeg)
        if not about.has_audio:
            what = "a video without sound" if about.has_video else "a file without an audio stream"
            raise InputError(f"audio: {about.path} is {what}", hint="name the recording that shall be spoken")
        if about.duration_s is not None and about.duration_exact:
            if about.duration_s < MIN_AUDIO_S:
                raise InputError(f"audio: {about.path} lasts {about.duration_s:.2f} s: too short to say anything")
            if about.duration_s > self._options.max_audio_s + 1:
                raise InputError(
                    f"audio: {about.path} lasts {about.duration_s:.0f} s, more than {self._options.max_audio_s:.0f} s",
                    hint="cut it into parts, or raise the option `max_audio_s`",
                )
        info = probe_video(job.video, "video", self._options.ffmpeg)
        if job.face != "largest" and not isinstance(job.face, int):
            x, y = job.face
            width, height = round(info.width / info.shrunk), round(info.height / info.shrunk)
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(f"face: the point {x:g},{y:g} is outside the picture of {width}×{height}")
        inputs = {about.path: "recording", info.path: "template"}
        persona = None if job.persona is None else absolute(job.persona)
        if persona is not None:
            inputs[persona] = "persona"
        output = None if job.output is None else check_output(job.output, inputs)
        found = {"audio": about.path, "video": info.path, "output": output, "persona": persona}
        return job.model_copy(update=found), info

    def _check_backend(self, job: LipSyncParams) -> None:
        if self._backends and job.backend is not None and job.backend not in self._backends:
            raise InputError(
                f"backend: {job.backend} is not set up here",
                hint=f"leave it out to use {self._options.backend}; wav2lip needs the option `checkpoint`, "
                "musetalk the option `musetalk`",
            )
        if job.persona is not None:
            self._check_persona(job)
        if (job.backend or self._options.backend) == "heygem" and job.face != "largest":
            raise InputError("face: the SDK of heygem chooses the face by itself", hint="leave `face` out")

    def _check_persona(self, job: LipSyncParams) -> None:
        from inference.persona.model import Persona  # torch, which a check of other jobs does without

        assert job.persona is not None
        name = job.backend or self._options.backend
        if name != "mesh":
            raise InputError(
                f"persona: the backend {name} paints its own way", hint="leave `persona` out, or use the backend mesh"
            )
        Persona.load(absolute(job.persona))

    def _encoding(self, task: Task, size: tuple[int, int], fps: float, scratch: Path) -> Encoding:
        chosen, job = self._options, task.job
        return Encoding(
            width=size[0],
            height=size[1],
            fps=fps,
            crf=max(BEST_CRF, job.crf),
            preset=chosen.preset,
            encoder=chosen.encoder,
            color=task.info.color,
            overlays=marks.overlays(
                size,
                scratch,
                watermark=bool(job.watermark),
                digital_auth=bool(job.digital_auth),
                watermark_path=chosen.watermark,
                digital_auth_path=chosen.digital_auth,
            ),
            growing=job.stream,
            ffmpeg=chosen.ffmpeg,
        )


@dataclass(frozen=True)
class Task:
    """One job once its files have been read."""

    job: LipSyncParams  #: paths absolute
    info: VideoInfo  #: of the template
    heard: sound.Sound
    frames: int  #: of the output
    shares: Shares
    backend: BackendName


class Shares:
    """How far a job is, in per cent, once each of its steps is done."""

    def __init__(self, info: VideoInfo, frames: int) -> None:
        seen = max(1, min(info.frames, MAX_FRAMES))
        follow, look, paint = seen * FOLLOW_MS, seen * LOOK_MS, frames * PAINT_MS
        scale = 100 * (1 - MERGE_SHARE) / (follow + look + paint)
        self.follow = follow * scale
        self.look = (follow + look) * scale


class Steps:
    """Tells the context how far the job is, never less than before, and that it is alive while it waits."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._status, self._message = "face_detecting", ""
        self._from = self._to = self._now = 0.0
        self._told = 0.0

    def begin(self, status: str, start: float, end: float, message: str) -> None:
        """A step that brings the job from ``start`` to ``end`` per cent."""
        self._status, self._message, self._from, self._to = status, message, start, end
        self._tell(start)

    def part(self, done: int, of: int) -> None:
        """So much of the step is done."""
        at = self._from + (self._to - self._from) * min(1.0, done / max(1, of))
        if at >= self._now + 0.5 or done >= of or time.monotonic() - self._told > SIGN_OF_LIFE_S:
            self._tell(at)

    def check(self) -> None:
        """Raise when the job was cancelled."""
        self._context.check()
        if time.monotonic() - self._told > SIGN_OF_LIFE_S:
            self._tell(self._now)

    def _tell(self, percent: float) -> None:
        self._now, self._told = max(self._now, percent), time.monotonic()
        self._context.progress(self._status, round(self._now, 1), self._message)


def threads_here() -> int:
    """Segments at a time: the cores this process may use, at most 8.

    Not ``OMP_NUM_THREADS``: the pool shares cores out among all its workers, most of which wait.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _warnings(task: Task) -> Iterator[str]:
    """Warnings about the files, for the caller."""
    if task.info.variable_rate:
        yield f"video: its frames come at uneven times; the output has {task.info.fps:g} per second"
    if task.info.shrunk < 1:
        yield f"video: a large photo, scaled to {task.info.width}×{task.info.height}"
    if task.info.hdr:
        done = "are left to the SDK" if task.backend == "heygem" else "are tone-mapped to BT.709"
        yield f"video: its colours have a high dynamic range ({task.info.hdr}) and {done}"
    if task.info.alpha:
        yield "video: its transparency is lost; the output lies on black"
    if task.job.crf < BEST_CRF:
        yield CRF_RAISED
    yield from (f"audio: {note}" for note in task.heard.notes)


def _seen(analysis: TemplateAnalysis, note: str) -> tuple[str, ...]:
    """Warnings about the picture. note: why the encoder is not the one that was asked for."""
    lost, covered = ~analysis.found, analysis.covered
    told = []
    if lost.any():
        told.append(f"video: no face in {_which(lost, analysis.fps)}; they stay as they are")
    if covered.any():
        told.append(f"video: something is before the mouth in {_which(covered, analysis.fps)}; they stay as they are")
    cuts = np.flatnonzero(np.diff(analysis.shot)) + 1
    if cuts.size:
        times = ", ".join(f"{cut / analysis.fps:.1f} s" for cut in cuts[:SPANS])
        more = f" and {cuts.size - SPANS} more" if cuts.size > SPANS else ""
        told.append(f"video: {cuts.size + 1} shots (cuts at {times}{more}) show {_people(analysis)}")
    if analysis.cut_off.any():
        told.append(f"video: the picture ends before the mouth in {_which(analysis.cut_off, analysis.fps)}")
    return (*told, note) if note else tuple(told)


def _people(analysis: TemplateAnalysis) -> str:
    count = int(analysis.person.max()) + 1
    return "1 person" if count == 1 else f"{count} people, as far as their looks tell; none is lent another's mouth"


def _which(frames: NDArray[np.bool_], fps: float) -> str:
    """How many frames of a template, and when: "30 of 90 frames (0.8–2.0 s)"."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]]).astype(np.int8)))
    spans = [f"{start / fps:.1f}–{stop / fps:.1f} s" for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    more = f" and {len(spans) - SPANS} more" if len(spans) > SPANS else ""
    return f"{int(frames.sum())} of {len(frames)} frames ({', '.join(spans[:SPANS])}{more})"
