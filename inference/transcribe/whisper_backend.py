"""The default pipeline, one pass over the recording.

    stream → speech → windows → Whisper → words ─┐
                   └→ voices ────────→ speakers ─┴→ segments

What is held at a time: a block of sound, the open stretch, the speech of one batch, 520 bytes per voice
window, and the words; so memory hardly grows with the length of the recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inference import media, weights
from inference.audio import SILENCE_DBFS
from inference.base import Context, EngineError, InputError
from inference.transcribe.cluster import find_speakers, similarities
from inference.transcribe.outputs import join_texts
from inference.transcribe.params import Options, Params
from inference.transcribe.voices import SpeakerEncoder, Voices
from inference.transcribe.whisper import DETECT_PROBABILITY, Whisper, WhisperSession
from inference.transcribe.windows import Packer, Window
from inference.transcribe.words import Word, assign_speakers, segment_record, segments, speaker_name
from inference.vad import SAMPLE_RATE, SileroModel, SpeechDetector, Stretch

VAD_FILE = "silero-vad/silero_vad_16k_sequence.onnx"
ENCODER_FILE = "speaker-encoder/pretrained.pt"
VOICE_HOP_S = 0.4  #: seconds between voice windows
SHARE_READ = 10.0  #: percent of the progress for reading, the rest up to SHARE_DONE for recognition
SHARE_DONE = 95.0
TRUNCATED_S = 1.0  #: this much less sound than the header promises is worth a warning


class WhisperBackend:
    """Whisper, silero and the speaker encoder, loaded; runs one recording at a time."""

    def __init__(self, options: Options, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._options = options
        name = options.model or "whisper-base"
        known = name in ("whisper-base", "whisper-tiny.en")
        self._folder = weights.find_model(name) if known else weights.find_model("whisper-base", name)
        self._vad_file = weights.find(VAD_FILE, options.vad)
        self._vad = SileroModel(self._vad_file)
        self._whisper = Whisper(
            self._folder,
            device,
            compute_type=options.compute_type,
            threads=threads,
            beam_size=options.beam_size,
            window_batch=options.window_batch,
        )
        self.languages = self._whisper.languages
        self._encoder: SpeakerEncoder | None = None
        self._encoder_file: Path | None = None
        self._no_labels = ""  # why there are none
        if options.diarize:
            try:
                self._encoder_file = weights.find(ENCODER_FILE, options.speaker_encoder)
                self._encoder = SpeakerEncoder(self._encoder_file, device)
            except EngineError as error:
                self._no_labels = f"speakers are not told apart: {error} ({error.hint})"

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        model = [path for path in self._folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return [*model, self._vad_file, *([self._encoder_file] if self._encoder_file else [])]

    def settings(self) -> dict[str, object]:
        """The options that shape a transcript."""
        shaping = {"backend", "compute_type", "beam_size", "initial_prompt", "diarize"}
        return {**self._options.model_dump(include=shaping), "labels": self._encoder is not None}

    def warmup(self) -> None:
        """Run every model once on a second of hum."""
        hum = (0.1 * np.sin(np.arange(SAMPLE_RATE) * 0.05)).astype(np.float32)
        list(SpeechDetector(self._vad).feed(hum))
        stretch = Stretch(0, hum, 0, len(hum))
        packer = Packer()
        packer.add(stretch)
        window = packer.flush()
        assert window is not None
        list(self._whisper.session("en", None, None).recognise([window]))
        if self._encoder is not None:
            voices = Voices()
            self._encoder.listen(hum, 0.0, VOICE_HOP_S, voices)
            starts, ends, vectors = voices.arrays()
            find_speakers(vectors, starts, ends)

    def transcribe(self, job: Params, about: media.Probe, context: Context) -> dict[str, Any]:
        """The whole of one job; raises InputError when the file holds no sound that can be decoded."""
        return _Recording(self, job, about, context).transcribe()


class _Recording:
    """One recording on its way through the pipeline."""

    def __init__(self, backend: WhisperBackend, job: Params, about: media.Probe, context: Context) -> None:
        self._b, self._job, self._about, self._context = backend, job, about, context
        self._session: WhisperSession = backend._whisper.session(
            job.language, job.hotword, backend._options.initial_prompt
        )
        self._packer = Packer()
        self._waiting: list[Window] = []
        self._words: list[Word] = []
        self._open: list[Word] = []  # words of the segment that may still go on
        self._voices = Voices()
        self._label_error = backend._no_labels
        self._recognised_s = 0.0
        self._percent = 0.0
        self._read_s = 0.0
        self.warnings: list[str] = []

    def transcribe(self) -> dict[str, Any]:
        detector = SpeechDetector(self._b._vad)
        with media.decode(self._about.path, ffmpeg=self._b._options.ffmpeg) as stream:
            for block in stream:
                for stretch in detector.feed(block):
                    self._take(stretch)
                self._read_s = stream.position_s
                self._report()
            for stretch in detector.finish():
                self._take(stretch)
            self._judge(stream)
        self._queue(self._packer.flush())
        self._recognise()
        self._finish_segments([])
        if not self._words:
            self._say_why_empty(detector.peak)
        self._label()
        return self._result()

    def _take(self, stretch: Stretch) -> None:
        self._context.check()
        if self._b._encoder is not None and not self._label_error and self._job.speakers != 1:
            try:
                start = stretch.speech_start / SAMPLE_RATE
                self._b._encoder.listen(stretch.speech, start, VOICE_HOP_S, self._voices)
            except Exception as error:  # labels are a bonus; the text must come all the same
                self._label_error = f"speakers are not told apart: {type(error).__name__}: {error}"
        self._queue(self._packer.add(stretch))
        waiting = sum(window.seconds for window in self._waiting)
        if waiting + self._packer.seconds >= self._job.batch_size_s:
            self._queue(self._packer.flush())
            self._recognise()

    def _queue(self, window: Window | None) -> None:
        if window is not None:
            self._waiting.append(window)

    def _recognise(self) -> None:
        """Recognise the windows that wait; the only slow step."""
        windows, self._waiting = self._waiting, []
        for heard in self._session.recognise(windows):
            self._context.check()
            self._finish_segments(heard.words)
            if heard.uncertain:
                window = heard.window
                self.warnings.append(f"the text from {window.start:.0f} s to {window.end:.0f} s is uncertain")
            self._recognised_s = heard.window.end
            self._report()

    def _finish_segments(self, words: list[Word]) -> None:
        """Hand out the segments that are complete now; with no words, all of them."""
        self._words += words
        runs = list(segments([*self._open, *words]))
        self._open = runs.pop() if runs and words else []
        for run in runs:
            self._context.partial(segment_record(run))

    def _report(self) -> None:
        self._context.check()
        total = self._about.duration_s or max(self._read_s * 1.25, 60.0)
        read, done = min(1.0, self._read_s / total), min(1.0, self._recognised_s / total)
        # Without a length in the header the estimate grows while reading; progress must not go back for that.
        self._percent = max(self._percent, SHARE_READ * read + (SHARE_DONE - SHARE_READ) * done)
        self._context.progress("inference", self._percent, f"{self._recognised_s:.0f} of {total:.0f} s")

    def _judge(self, stream: media.AudioStream) -> None:
        """What the end of the stream says about the file."""
        path, promised, got = self._about.path, self._about.duration_s, stream.position_s
        self._read_s = got
        if got == 0:
            reason = stream.error or "the stream is empty"
            raise InputError(f"audio: {path} holds no sound that can be decoded ({reason})")
        short = promised is not None and self._about.duration_exact and promised - got > max(TRUNCATED_S, promised / 50)
        if short:
            self.warnings.append(f"the file is truncated: {got:.1f} s of {promised:.1f} s could be decoded")
        elif stream.error:
            self.warnings.append(f"the file is damaged or truncated ({stream.error}): {got:.1f} s were decoded")

    def _say_why_empty(self, peak: float) -> None:
        if peak < 10 ** (SILENCE_DBFS / 20):
            self.warnings.append("the recording is silent")
        elif not self._recognised_s:
            self.warnings.append("no speech was found: the recording holds only music or noise")
        else:
            self.warnings.append("no words were understood: what sounds like speech may be music, song or noise")

    def _label(self) -> None:
        """Give every word its speaker, from the voices of the whole recording; never fails the job."""
        self._context.progress("processing", SHARE_DONE, "telling speakers apart")
        if not self._words or not self._b._options.diarize:
            return
        try:
            if self._label_error:
                self.warnings.append(self._label_error)
                return
            starts, ends, vectors = self._voices.arrays()
            if self._job.speakers == 1 or len(vectors) == 0:
                for word in self._words:
                    word.speaker = 0
            else:
                found = find_speakers(vectors, starts, ends, self._job.speakers)
                similarity = similarities(vectors, found.centroids)
                assign_speakers(self._words, starts, ends, similarity)
            self._compare_count()
        except Exception as error:
            for word in self._words:
                word.speaker = None
            self.warnings.append(f"speakers are not told apart: {type(error).__name__}: {error}")

    def _compare_count(self) -> None:
        told, asked = len({word.speaker for word in self._words}), self._job.speakers
        if asked is not None and told < asked:
            self.warnings.append(f"{asked} speakers were asked for, {told} could be told apart")

    def _result(self) -> dict[str, Any]:
        if self._session.language_probability < DETECT_PROBABILITY and self._words:
            self.warnings.append(
                f"the language is uncertain: {self._session.language} with probability "
                f"{self._session.language_probability:.2f}; set `language` if it is another"
            )
        records = [segment_record(run) for run in segments(self._words)]
        speakers = sorted({word.speaker for word in self._words if word.speaker is not None})
        return {
            "text": join_texts([str(record["text"]) for record in records]),
            "language": self._session.language,
            "duration_s": round(self._read_s, 3),
            "segments": records,
            "speakers": [speaker_name(speaker) for speaker in speakers],
            "warnings": self.warnings,
        }
