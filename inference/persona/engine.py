"""The engine: a video of a person talking in, a file with that person's mouth out.

    face_detecting   the sound is read, the face followed, the pairs to learn from are drawn
    inference        the network learns; then what was held out is drawn and measured

A job that was killed goes on with the step after its last checkpoint, and ends with the same file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from inference import cuda, extras, media, weights
from inference.articulation import Articulator, head_path
from inference.articulation.curve import Articulation
from inference.base import Context, EngineError, Files, InputError, read_options, read_params
from inference.face.analysis import MAX_FRAMES, Decoding, TemplateAnalysis, cached
from inference.face.model import FaceModel
from inference.face.track import Choice
from inference.finding import Finding, tried
from inference.kept import Shelf
from inference.lipsync import sound
from inference.lipsync.engine import Steps
from inference.lipsync.render import tracks
from inference.paths import absolute, check_output
from inference.persona import report, subject
from inference.persona.examples import Workshop, look
from inference.persona.model import MOST_BYTES, Painter, Persona
from inference.persona.params import Options
from inference.persona.params import Params as PersonaParams
from inference.persona.training import Trainer
from inference.probe import VideoInfo, probe_video
from inference.video import FrameReader, read_frames

VERSION = 1  #: raise it when the same video may give another persona; part of the fingerprint
FOLLOWED, LOOKED, DRAWN, LEARNED, SEEN = 6.0, 8.0, 14.0, 94.0, 96.0  #: per cent when each part is done
SAVED_S, SAVING_SHARE = 15.0, 50.0  #: between checkpoints: seconds, and times what one takes
SPOKEN_S = 5.0  #: of speech that a report needs
FOLLOWS = 0.25  #: r of the real mouth with what the sound asks, below which it is another voice
UNLIKE, BLURRED = (
    0.18,
    0.77,
)  #: gradient deviation above which mouths were muddy, sharpness below which teeth were blurred
TOLD_EVERY = 20  #: steps


class Training:
    """Learns one person's mouth. See :class:`PersonaParams` for what a job may ask."""

    Params: ClassVar[type[PersonaParams]] = PersonaParams

    def __init__(self) -> None:
        self._options = Options()
        self._model: FaceModel | None = None
        self._articulator: Articulator | None = None
        self._files: list[Path] = []
        self._device = "cpu"
        self._fingerprint = ""

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Load the models, 1 to 3 s on CPU. Raises :class:`EngineError` naming the file or key at fault."""
        extras.require("lipsync")
        self._options = chosen = read_options(Options, options)
        media.ffmpeg_binary(chosen.ffmpeg)
        cuda.require(device)
        self._device = device
        cv2.setNumThreads(1)
        face = weights.find("face-landmarker/face_landmarker.task", chosen.face_model)
        whisper = weights.find_model("whisper-base", chosen.whisper)
        head = chosen.articulation or head_path()
        self._files = [face, *sorted(whisper.glob("*.bin")), head]
        self._model = FaceModel(face)
        self._articulator = Articulator(whisper, head, device=device)

    @staticmethod
    def diagnose(device: str, options: Mapping[str, object]) -> Iterator[Finding]:
        """Look at what the engine would load, without loading it. Raises :class:`EngineError` for wrong options."""
        chosen = read_options(Options, options)
        yield tried("ffmpeg", lambda: media.ffmpeg_binary(chosen.ffmpeg))
        yield tried("face model", lambda: weights.find("face-landmarker/face_landmarker.task", chosen.face_model))
        yield tried("whisper", lambda: weights.find_model("whisper-base", chosen.whisper))
        if cuda.is_gpu(device):
            yield tried("torch", lambda: cuda.described(device))

    def check(self, params: Mapping[str, object]) -> PersonaParams:
        """Types, files and headers, in 0.2 to 0.5 s; paths come back absolute. Raises :class:`InputError`."""
        job, _ = self._checked(params)
        return job

    def run(self, params: PersonaParams, context: Context) -> dict[str, Any]:
        """Learn one persona."""
        started, steps = time.monotonic(), Steps(context)
        model, articulator = self._loaded()
        steps.begin("face_detecting", 0.0, 0.0, "reading the sound")
        job, info = self._checked(params.model_dump())
        heard = sound.read(job.video, subject.MOST_S + 1e6, steps.check, self._options.ffmpeg)
        limit = int(subject.MOST_S * info.fps)
        said = articulator.curve(heard.samples[: int(subject.MOST_S * media.SAMPLE_RATE)])
        _require_speech(job.video, said)
        analysis = self._follow(job, info, context.cache, steps, min(limit, MAX_FRAMES))
        film = _Film(info, analysis, self._options.ffmpeg)
        person = subject.choose(job.video, analysis, tracks.follow(analysis, model.mesh.vertices))

        def tick(index: int) -> None:
            steps.check()
            steps.part(index, analysis.frames)

        steps.begin("face_detecting", FOLLOWED, LOOKED, "looking at the mouth")
        with film.frames() as frames:
            sources = look(person, analysis, frames, model, tick)
        workshop = Workshop(person, sources)
        steps.begin("face_detecting", LOOKED, DRAWN, "drawing what is learned from")
        with film.frames() as frames:
            examples = workshop.learned(frames, tick)
        drawn = time.monotonic()
        trainer = Trainer(examples, workshop.square.cover, workshop.lips, steps=job.steps, device=self._device)
        resumed = _learn(trainer, context, steps)
        learned = time.monotonic()
        steps.begin("inference", LEARNED, SEEN, "drawing what was held out")
        painter = Painter(trainer.weights, workshop.square.cover, self._device)
        judge = report.Judge(person, sources.learned, workshop.square, workshop.scale, model)
        with film.frames() as frames:
            alike = judge.alike(workshop.held(frames, tick), painter, workshop.lips)
        steps.begin("inference", SEEN, 100.0, "speaking what was held out")
        with film.frames() as frames:
            spoken = judge.spoken(said, frames, painter, tick)
        measured = report.written(person, alike, spoken)
        persona = Persona(trainer.weights, workshop.square, workshop.scale, sources.traits, measured)
        place = context.output(job.output, "person.persona")
        persona.save(place)
        size = place.stat().st_size
        assert size <= MOST_BYTES, size
        steps.part(1, 1)
        return {
            "output": str(job.output) if job.output is not None else "person.persona",
            "bytes": size,
            "fps": info.fps,
            "frames": analysis.frames,
            "steps": trainer.step,
            "resumed_at_step": resumed,
            "report": measured,
            "seconds": {
                "prepare": round(drawn - started, 3),
                "learn": round(learned - drawn, 3),
                "judge": round(time.monotonic() - learned, 3),
            },
            "warnings": [
                *person.warnings,
                *(f"video: {note}" for note in heard.notes),
                *_voice(person, said, info.fps),
                *doubts(measured),
            ],
        }

    def files(self, params: PersonaParams) -> Files:
        """What the job reads and writes."""
        written = () if params.output is None else (absolute(params.output),)
        return Files(inputs=(absolute(params.video),), outputs=written)

    def fingerprint(self) -> str:
        """Changes with the weights and with every option that may change a persona."""
        if not self._fingerprint:
            shape = {"version": VERSION, "weights": weights.fingerprint(self._files)}
            self._fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return self._fingerprint

    def memory(self) -> dict[str, int]:
        """Bytes of the GPU that are held: what ``recycle.gpu_memory_mb`` limits and ``status`` shows."""
        return {"gpu_bytes": cuda.held(self._device)}

    def close(self) -> None:
        """Free the models."""
        self._model = self._articulator = None

    def _loaded(self) -> tuple[FaceModel, Articulator]:
        if self._model is None or self._articulator is None:
            raise EngineError("the engine is not loaded", hint="call load() first")
        return self._model, self._articulator

    def _checked(self, params: Mapping[str, object]) -> tuple[PersonaParams, VideoInfo]:
        job = read_params(PersonaParams, params)
        info = probe_video(job.video, "video", self._options.ffmpeg)
        if not media.probe(job.video, "video", self._options.ffmpeg).has_audio:
            raise InputError(
                f"video: {info.path} has no sound", hint="a persona is judged by what is said: keep the sound"
            )
        if info.duration_s < subject.LEAST_S:
            raise InputError(
                f"video: {info.path} lasts {info.duration_s:.1f} s; a persona needs {subject.LEAST_S:.0f} s",
                hint="use 20 s to 5 min of one person who talks to the camera",
            )
        output = None if job.output is None else check_output(job.output, {info.path: "video"})
        return job.model_copy(update={"video": info.path, "output": output}), info

    def _follow(self, job: PersonaParams, info: VideoInfo, cache: Path, steps: Steps, frames: int) -> TemplateAnalysis:
        assert self._model is not None
        steps.begin("face_detecting", 0.0, FOLLOWED, "following the face")
        return cached(
            Shelf(cache / "analyses", self._options.cache_mb << 20),
            info,
            self._model,
            steps.part,
            choice=Choice.of(job.face, info.shrunk),
            frames=frames,
            check=steps.check,
            decoding=Decoding(ffmpeg=self._options.ffmpeg),
        )


class _Film:
    """A video that is read several times."""

    def __init__(self, info: VideoInfo, analysis: TemplateAnalysis, ffmpeg: str | None) -> None:
        self._info, self._analysis, self._ffmpeg = info, analysis, ffmpeg

    def frames(self) -> FrameReader:
        """All frames of the analysis; a context manager."""
        seen = self._analysis
        return read_frames(self._info, fps=seen.fps, count=seen.frames, ffmpeg=self._ffmpeg)


def _learn(trainer: Trainer, context: Context, steps: Steps) -> int:
    """All steps that are left; returns the step that an earlier attempt had come to."""
    state = context.restore()
    if state:
        trainer.resume(state)
    begun = trainer.step
    steps.begin("inference", DRAWN, LEARNED, f"learning, {trainer.steps} steps")
    steps.part(begun, trainer.steps)
    saved, pause = time.monotonic(), SAVED_S
    while trainer.step < trainer.steps:
        steps.check()
        error = trainer.learn()
        if not np.isfinite(error):
            raise EngineError(f"learning failed: the error is {error} at step {trainer.step}")
        if trainer.step % TOLD_EVERY == 0:
            steps.part(trainer.step, trainer.steps)
        now = time.monotonic()
        if now - saved >= pause:
            context.checkpoint(trainer.state())
            saved = time.monotonic()
            pause = max(SAVED_S, SAVING_SHARE * (saved - now))
    context.checkpoint(trainer.state())
    return begun


def _require_speech(path: Path, said: Articulation) -> None:
    spoken = float((said.voiced > 0.5).sum()) / said.fps
    if spoken < SPOKEN_S:
        raise InputError(
            f"video: somebody speaks for {spoken:.1f} s in {path}; a persona needs {SPOKEN_S:.0f} s of speech",
            hint="use 20 s to 5 min of one person who talks to the camera, with sound",
        )


def _voice(person: subject.Subject, said: Articulation, fps: float) -> Iterator[str]:
    """Whether the voice is that of the person who is seen."""
    seen = np.flatnonzero(person.tracks.found)
    at = (seen + 0.5) / fps * said.fps - 0.5
    opening = np.interp(at, np.arange(len(said)), said.channels["opening"]).astype(np.float32)
    lags = range(-report.MAX_LAG, report.MAX_LAG + 1)
    r = max(report.correlation(opening, person.tracks.opening[seen], lag) for lag in lags)
    if r < FOLLOWS:
        yield f"video: the mouth does not follow the sound (r {r:.2f}): what the report says of speech tells little"


def doubts(measured: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against a persona whose :func:`report.written` this is, in words."""
    mesh, persona = measured["mesh"], measured["persona"]
    worse = [
        f"{name} {persona[name]:g} instead of {mesh[name]:g}"
        for name, sign in (("psnr_db", 1), ("gradient_deviation", -1), ("opening_r", 1), ("closures", 1))
        if mesh[name] is not None and sign * (persona[name] - mesh[name]) < -0.02 * abs(mesh[name])
    ]
    if worse:
        yield f"the persona measures worse than the mesh backend alone: {', '.join(worse)}; look at both"
    more = "look at it beside the mesh backend alone, or learn from more of the person, with wide open mouths"
    if persona["gradient_deviation"] > UNLIKE:
        yield (
            f"the persona's mouth is unlike the real one (gradient_deviation {persona['gradient_deviation']:g}, above "
            f"{UNLIKE:g}): lips and teeth may look muddy; {more}"
        )
    if persona["sharpness"] < BLURRED:
        yield f"the persona's mouth is blurred (sharpness {persona['sharpness']:g}, below {BLURRED:g}); {more}"
