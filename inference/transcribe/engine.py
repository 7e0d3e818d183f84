"""The engine: parameters in, transcript out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from inference import extras, media, weights
from inference.base import Context, EngineError, Files, InputError, read_options, read_params
from inference.finding import Finding, tried
from inference.paths import absolute, check_output
from inference.transcribe import itn, models, outputs, script
from inference.transcribe.diarize import ENCODER_FILE, SEGMENTATION_FILE
from inference.transcribe.params import Options
from inference.transcribe.params import Params as TranscribeParams
from inference.transcribe.subtitles import several, with_cues

PIPELINE_VERSION = 4  #: raise it when the same input may give another transcript; part of the fingerprint
MIN_DURATION_S = 0.1


class Backend(Protocol):
    """What turns one recording into words and speakers: ``windowed_backend`` and ``funasr_backend``."""

    languages: tuple[str, ...]  #: codes that may be asked for; empty: any
    name: str  #: of the model
    translates: bool  #: whether it can write speech of any language in English

    def transcribe(self, job: TranscribeParams, about: media.Probe, context: Context) -> dict[str, Any]:
        """The result of one job."""
        ...

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        ...

    def settings(self) -> dict[str, object]:
        """The options that shape a transcript."""
        ...

    def warmup(self) -> None:
        """Run every model once."""
        ...


class Transcribe:
    """Speech to text with speakers. See :class:`TranscribeParams` for what a job may ask."""

    Params: ClassVar[type[TranscribeParams]] = TranscribeParams

    def __init__(self) -> None:
        self._options = Options()
        self._backend: Backend | None = None
        self._fingerprint = ""

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Load the models, 1 to 3 s on CPU. Raises :class:`EngineError` naming the file or key at fault."""
        self._options = read_options(Options, options)
        if self._options.backend != "funasr":
            extras.require("transcribe")
        media.ffmpeg_binary(self._options.ffmpeg)
        threads = self._options.cpu_threads or _threads()
        if self._options.backend == "funasr":
            from inference.transcribe.funasr_backend import FunAsrBackend

            self._backend = FunAsrBackend(self._options, device, threads)
        else:
            from inference.transcribe.windowed_backend import WindowedBackend

            self._backend = WindowedBackend(self._options, device, threads)

    def warmup(self) -> None:
        """One second of hum through every model, so that the first job meets no first-call cost."""
        self._loaded().warmup()

    @staticmethod
    def diagnose(device: str, options: Mapping[str, object]) -> Iterator[Finding]:
        """Look at what the engine would load, without loading it. Raises :class:`EngineError` for wrong options."""
        chosen = read_options(Options, options)
        yield tried("ffmpeg", lambda: media.ffmpeg_binary(chosen.ffmpeg))
        if chosen.backend == "sherpa":
            yield tried("sherpa model", lambda: models.sherpa(chosen.model))
        if chosen.backend == "whisper":
            yield tried("whisper", lambda: models.whisper(chosen.model))
        if chosen.backend != "funasr":
            yield tried("voice detection", lambda: chosen.vad or weights.find_model("silero-vad"))
            if chosen.diarize:
                yield tried("speaker encoder", lambda: weights.find(ENCODER_FILE, chosen.speaker_encoder))
                yield tried("speaker changes", lambda: weights.find(SEGMENTATION_FILE, chosen.speaker_segmentation))

    def check(self, params: Mapping[str, object]) -> TranscribeParams:
        """Types, files and headers, in under 0.1 s; paths come back absolute. Raises :class:`InputError`."""
        job, _ = self._checked(params)
        return job

    def run(self, params: TranscribeParams, context: Context) -> dict[str, Any]:
        """Transcribe one recording; the shape of the result is that of the module's documentation."""
        backend = self._loaded()
        context.progress("processing", 0.0, "opening the recording")
        job, about = self._checked(params.model_dump())
        result = {**backend.transcribe(job, about, context), "task": job.task}
        result["segments"] = with_cues(result["segments"], named=several(result))
        if job.output is not None:
            result["output"] = str(job.output)
            file = context.output(job.output, job.output.name)
            outputs.write(result, file, job.output.suffix, name=job.audio.stem, word_times=job.word_times)
        context.progress("processing", 100.0, _summary(result))
        return result

    def files(self, params: TranscribeParams) -> Files:
        """What the job reads and writes."""
        written = () if params.output is None else (absolute(params.output),)
        return Files(inputs=(absolute(params.audio),), outputs=written)

    def fingerprint(self) -> str:
        """Changes with the weights and with every option that may change a transcript."""
        if not self._fingerprint:
            backend = self._loaded()
            shape = {"version": PIPELINE_VERSION, **backend.settings()}
            shape["weights"] = weights.fingerprint(backend.files())
            self._fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return self._fingerprint

    def close(self) -> None:
        """Free the models."""
        self._backend = None

    def _loaded(self) -> Backend:
        if self._backend is None:
            raise EngineError("the engine is not loaded", hint="call load() first")
        return self._backend

    def _checked(self, params: Mapping[str, object]) -> tuple[TranscribeParams, media.Probe]:
        job = read_params(TranscribeParams, params)
        known = self._backend.languages if self._backend is not None else ()
        if job.language and known and job.language not in known:
            raise InputError(
                f"language: {job.language!r} is none that this model knows",
                hint=f"one of {' '.join(known)}; or leave it out to detect it",
            )
        if job.task == "translate" and self._backend is not None and not self._backend.translates:
            raise InputError(
                f"task: {self._backend.name} cannot translate",
                hint="give the option model a multilingual Whisper model such as whisper-small; .en and turbo are none",
            )
        if job.script is not None:
            script.require()
        if job.itn:
            itn.require()
        about = media.probe(job.audio, ffmpeg=self._options.ffmpeg)
        if not about.has_audio:
            what = "a video without sound" if about.has_video else "a file without an audio stream"
            raise InputError(f"audio: {about.path} is {what}", hint="there is nothing to transcribe in it")
        if job.stream is not None and job.stream >= len(about.sounds):
            raise InputError(
                f"stream: {about.path} has {len(about.sounds)} audio stream(s), from 0 on; there is no {job.stream}",
                hint="leave it out to hear the one that is marked default, else the first with sound",
            )
        if about.duration_s is not None and about.duration_s < MIN_DURATION_S and about.duration_exact:
            raise InputError(f"audio: {about.path} lasts {about.duration_s:.2f} s: too short to hold a word")
        output = None if job.output is None else check_output(job.output, {about.path: "recording"})
        return job.model_copy(update={"audio": about.path, "output": output}), about


def _threads() -> int:
    """Threads per operation: ``OMP_NUM_THREADS`` as the pool sets it, else the cores this process may use."""
    configured = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if configured.isdigit() and int(configured) > 0:
        return int(configured)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _summary(result: Mapping[str, Any]) -> str:
    words = sum(len(segment["words"]) for segment in result["segments"])
    return f"{words} words, {len(result['speakers'])} speakers, {result['duration_s']:.0f} s"
