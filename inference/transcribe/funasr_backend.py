"""The funasr backend: the real ``funasr`` package, its own models, our parameters and result.

Recognition, punctuation and speakers are those of ``funasr.AutoModel``, loaded from folders (or, when
``allow_download`` is set, by name from its hub). FunASR wants a recording as one array, so unlike the default
backend this one holds the sound in memory: 230 MB an hour.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference import media
from inference.audio import SILENCE_DBFS, Array
from inference.base import Context, EngineError, InputError
from inference.transcribe.outputs import join_texts
from inference.transcribe.params import Options, Params
from inference.transcribe.words import Word, segment_record, segments, speaker_name

SHARE_READ = 10.0  #: percent of the progress for reading the file
MODELS = ("model", "vad_model", "punc_model", "spk_model")
TAGS = re.compile(r"<\|([^|]*)\|>")  # SenseVoice writes language and mood into the text
TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['’-][^\W_]+)*")
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class FunAsrBackend:
    """A loaded ``AutoModel``; runs one recording at a time."""

    languages: tuple[str, ...] = ()

    def __init__(self, options: Options, device: str, threads: int) -> None:
        self._options = options
        self._folders: list[Path] = []
        if not options.model:
            raise EngineError("options.model: the funasr backend needs a model folder", hint="set it in config.json")
        named = {key: self._resolve(key, getattr(options, key)) for key in MODELS if getattr(options, key)}
        try:
            import funasr
        except ImportError as error:
            raise EngineError(
                f"the funasr package cannot be imported: {error}", hint="pip install 'filepool[funasr]'"
            ) from error
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # a checkpoint may hold tensors, not code
        quiet = {"disable_update": True, "disable_pbar": True, "disable_log": True, "log_level": "ERROR"}
        try:
            self._model: Any = funasr.AutoModel(
                **{**quiet, "device": device, "ncpu": threads, "hub": options.hub, **options.funasr, **named}
            )
        except Exception as error:
            raise EngineError(
                f"funasr could not load {', '.join(named.values())}: {type(error).__name__}: {error}",
                hint="each folder needs config.yaml and model.pt as published by its authors",
            ) from error

    def _resolve(self, key: str, name: str) -> str:
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not any((folder / config).is_file() for config in ("config.yaml", "configuration.json")):
                raise EngineError(f"options.{key}: {folder} holds no config.yaml: not a FunASR model folder")
            self._folders.append(folder)
            return str(folder.resolve())
        if not self._options.allow_download:
            raise EngineError(
                f"options.{key}: {name} is no folder",
                hint='name a folder with the model, or set "allow_download": true to fetch it from the hub',
            )
        return name

    def files(self) -> list[Path]:
        """The files of the local model folders."""
        return [
            path for folder in self._folders for path in folder.iterdir() if path.is_file() and path.suffix != ".md"
        ]

    def settings(self) -> dict[str, object]:
        """The options that shape a transcript."""
        shaping = {"backend", *MODELS, "funasr", "hub", "diarize"}
        return self._options.model_dump(mode="json", include=shaping)

    def warmup(self) -> None:
        """One second of hum; what the models make of it does not matter."""
        hum = (0.1 * np.sin(np.arange(media.SAMPLE_RATE) * 0.05)).astype(np.float32)
        with contextlib.suppress(Exception):
            self._model.generate(input=hum, fs=media.SAMPLE_RATE)

    def transcribe(self, job: Params, about: media.Probe, context: Context) -> dict[str, Any]:
        """The whole of one job; raises InputError when the file holds no sound that can be decoded."""
        warnings: list[str] = []
        sound = self._read(about, context, warnings)
        seconds = len(sound) / media.SAMPLE_RATE
        context.progress("inference", SHARE_READ, f"0 of {seconds:.0f} s")
        said = self._generate(sound, job, context, warnings)
        context.progress("processing", 95.0, "putting the transcript together")
        runs = _runs(said, seconds)
        if not runs:
            silent = float(np.max(np.abs(sound))) < 10 ** (SILENCE_DBFS / 20)
            warnings.append("the recording is silent" if silent else "no speech was found")
        _renumber(runs)
        records = [segment_record(run) for run in runs]
        for record in records:
            context.partial(record)
        people = sorted({run[0].speaker for run in runs if run[0].speaker is not None})
        return {
            "text": join_texts([str(record["text"]) for record in records]),
            "language": job.language or _language(str(said.get("text", ""))),
            "duration_s": round(seconds, 3),
            "segments": records,
            "speakers": [speaker_name(person) for person in people],
            "warnings": warnings,
        }

    def _read(self, about: media.Probe, context: Context, warnings: list[str]) -> Array:
        blocks: list[Array] = []
        with media.decode(about.path, ffmpeg=self._options.ffmpeg) as stream:
            for block in stream:
                context.check()
                blocks.append(block)
                share = min(1.0, stream.position_s / about.duration_s) if about.duration_s else 0.5
                context.progress("inference", SHARE_READ * share, "reading")
        if not blocks:
            reason = stream.error or "the stream is empty"
            raise InputError(f"audio: {about.path} holds no sound that can be decoded ({reason})")
        if stream.error:
            warnings.append(f"the file is damaged or truncated ({stream.error}): {stream.position_s:.1f} s decoded")
        return np.concatenate(blocks)

    def _generate(self, sound: Array, job: Params, context: Context, warnings: list[str]) -> Mapping[str, Any]:
        def tick(*_: int) -> None:
            # Called after each batch of each of the models, without saying of how many: a sign of life only.
            context.check()
            context.progress("inference", SHARE_READ, f"recognising {len(sound) / media.SAMPLE_RATE:.0f} s")

        how: dict[str, Any] = {"batch_size_s": max(1, round(job.batch_size_s)), "sentence_timestamp": True}
        how |= {"hotword": job.hotword} if job.hotword else {}
        how |= {"language": job.language} if job.language else {}
        how |= {"preset_spk_num": job.speakers} if job.speakers else {}
        how |= {"output_timestamp": True, "fs": media.SAMPLE_RATE, "progress_callback": tick}
        labels = self._model.spk_model is not None and self._options.diarize
        if not labels:
            how["return_spk_res"] = False
        try:
            found = self._model.generate(input=sound, **how)
        except Exception as error:
            if not labels:
                raise EngineError(f"funasr failed: {type(error).__name__}: {error}") from error
            warnings.append(f"speakers are not told apart: {type(error).__name__}: {error}")
            with _without_speakers(self._model):
                found = self._model.generate(input=sound, **how)
        return found[0] if found else {}


@contextlib.contextmanager
def _without_speakers(model: Any) -> Iterator[None]:
    """The same AutoModel as if it had been loaded without a speaker model."""
    speakers, model.spk_model = model.spk_model, None
    try:
        yield
    finally:
        model.spk_model = speakers


def _runs(said: Mapping[str, Any], seconds: float) -> list[list[Word]]:
    """Segments of words from what ``generate`` returns: sentences if it made any, else text and times."""
    sentences: Sequence[Mapping[str, Any]] = said.get("sentence_info") or ()
    if not sentences:
        text, times = str(said.get("text", "")), said.get("timestamp") or ()
        end = times[-1][1] if times else seconds * 1000
        sentences = ({"text": text, "start": times[0][0] if times else 0, "end": end, "timestamp": times},)
    said_words: list[Word] = []
    for sentence in sentences:
        text = TAGS.sub("", str(sentence.get("text") or sentence.get("sentence") or ""))
        words = _words(text, sentence["start"] / 1000, sentence["end"] / 1000, sentence.get("timestamp") or ())
        speaker = sentence.get("spk")
        for word in words:
            word.speaker = None if speaker is None else int(speaker)
        said_words += words
    return list(segments(said_words))


def _words(text: str, start: float, end: float, times: Sequence[Sequence[float]]) -> list[Word]:
    """Words (characters for Chinese) with their punctuation; spread evenly when the times do not match."""
    found = list(TOKENS.finditer(text))
    words = []
    for at, match in enumerate(found):
        until = found[at + 1].start() if at + 1 < len(found) else len(text)
        piece = text[0 if at == 0 else match.start() : until].strip()
        wide = WIDE.match(match[0]) or (at > 0 and WIDE.match(found[at - 1][0]))
        lead = "" if wide else " "
        if len(times) == len(found):
            first, last = times[at][0] / 1000, times[at][1] / 1000
        else:
            step = (end - start) / len(found)
            first, last = start + at * step, start + (at + 1) * step
        words.append(Word(first, max(last, first + 0.02), lead + piece, None))
    return words


def _renumber(runs: Sequence[Sequence[Word]]) -> None:
    """Speakers by order of appearance."""
    order: dict[int, int] = {}
    for run in runs:
        for word in run:
            if word.speaker is not None:
                word.speaker = order.setdefault(word.speaker, len(order))


def _language(text: str) -> str | None:
    """From SenseVoice's tag, else Chinese by its script, else unknown."""
    tag = TAGS.search(text)
    if tag and tag[1] in ("zh", "en", "yue", "ja", "ko"):
        return tag[1]
    return "zh" if WIDE.search(text) else None
