"""The default pipeline, one pass over the recording.

    stream → speech → windows → recogniser → words ─┐
                   └→ voices ───────────→ speakers ─┴→ segments

What is held at a time: a block of sound, the open stretch, the speech of one batch, 520 bytes per voice
window, and the words; so memory hardly grows with the length of the recording.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inference import media, weights
from inference.audio import SILENCE_DBFS
from inference.base import Context, EngineError
from inference.memory import give_back
from inference.transcribe import models
from inference.transcribe.cluster import Wanted
from inference.transcribe.crosstalk import Crosstalk
from inference.transcribe.diarize import Diarizer, Labelled
from inference.transcribe.itn import Numbers
from inference.transcribe.outputs import join_texts
from inference.transcribe.params import Options, Params
from inference.transcribe.punctuation import Punctuation
from inference.transcribe.recogniser import Recogniser, Session
from inference.transcribe.script import Script
from inference.transcribe.sherpa import Sherpa
from inference.transcribe.sound import Sound
from inference.transcribe.weak import weak
from inference.transcribe.whisper import Whisper
from inference.transcribe.windows import Packer, Window
from inference.transcribe.words import Word, segment_record, segments, speaker_name, stored
from inference.vad import SAMPLE_RATE, SileroModel, SpeechDetector, Stretch

VAD_FILE = "silero-vad/silero_vad_16k_sequence.onnx"
SHARE_READ = 10.0  #: percent of the progress for reading, the rest up to SHARE_DONE for recognition
SHARE_DONE = 95.0
SAVING_SHARE = 50.0  #: between two checkpoints there are so many times the seconds that one takes


class WindowedBackend:
    """A recogniser, silero and the speaker encoder, loaded; runs one recording at a time."""

    def __init__(self, options: Options, device: str, threads: int) -> None:
        import torch

        self._options = options
        self._recogniser = recogniser = _recogniser(options, device, threads)
        self._vad_file = weights.find(VAD_FILE, options.vad)
        self._vad = SileroModel(self._vad_file)
        self.name, self.languages, self.translates = recogniser.name, recogniser.languages, recogniser.translates
        self._punctuation: Punctuation | None = None
        self._no_marks = ""  # why there are none
        if not recogniser.punctuates:
            try:
                self._punctuation = Punctuation(models.punctuation(options.punctuation), threads)
            except EngineError as error:
                if options.punctuation is not None:
                    raise
                self._no_marks = f"{recogniser.name} writes no punctuation: {error} ({error.hint})"
        self._diarizer: Diarizer | None = None
        self._no_labels = ""  # why there are none
        if options.diarize:
            try:
                self._diarizer = Diarizer(options.speaker_encoder, options.speaker_segmentation, device)
            except EngineError as error:
                self._no_labels = f"speakers are not told apart: {error} ({error.hint})"
        # The networks for voices are small: threads would spend their time on waiting. Last, for CTranslate2 sets the
        # same number of threads as it loads.
        torch.set_num_threads(1)

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        marks = [self._punctuation.file] if self._punctuation else []
        return [*self._recogniser.files(), *marks, self._vad_file, *(self._diarizer.files if self._diarizer else [])]

    def settings(self) -> dict[str, object]:
        """The options that shape a transcript."""
        shaping = {"backend", "compute_type", "beam_size", "initial_prompt", "diarize", "punctuation"}
        return {**self._options.model_dump(include=shaping), "labels": self._diarizer is not None}

    def warmup(self) -> None:
        """Run every model once on a second of hum."""
        hum = (0.1 * np.sin(np.arange(SAMPLE_RATE) * 0.05)).astype(np.float32)
        list(SpeechDetector(self._vad).feed(hum))
        stretch = Stretch(0, hum, 0, len(hum))
        packer = Packer()
        packer.add(stretch)
        window = packer.flush()
        assert window is not None
        list(self._recogniser.session("en", None).recognise([window]))
        if self._diarizer is not None:
            self._diarizer.session(Wanted()).listen(stretch)

    def transcribe(self, job: Params, about: media.Probe, context: Context) -> dict[str, Any]:
        """The whole of one job; raises InputError when the file holds no sound that can be decoded."""
        return _Recording(self, job, about, context).transcribe()


def _recogniser(options: Options, device: str, threads: int) -> Recogniser:
    if options.backend == "sherpa":
        return Sherpa(options, device, threads)
    return Whisper(options, device, threads)


@dataclass
class _Channel:
    """One channel on its way to words; a recording has one unless its channels are heard apart."""

    number: int
    detector: SpeechDetector
    session: Session
    packer: Packer = field(default_factory=Packer)
    waiting: list[Window] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    open: list[Word] = field(default_factory=list)  #: words of the segment that may still go on
    skip: int = 0  #: of the windows to come, so many were recognised by an attempt before
    leaked: Counter[int] = field(default_factory=Counter)  #: words that were left out, by the channel they come from
    done: dict[str, Any] = field(default_factory=dict)  #: how far it is, for a checkpoint; empty: at its beginning

    def queue(self, window: Window | None) -> None:
        """A window that is to be recognised with the next batch."""
        if window is not None:
            self.waiting.append(window)

    @property
    def waiting_s(self) -> float:
        """Seconds of speech that wait to be recognised."""
        return self.packer.seconds + sum(window.seconds for window in self.waiting)

    def take(self) -> list[Window]:
        """The windows that wait and are to be recognised."""
        windows, self.waiting = self.waiting, []
        skipped = min(self.skip, len(windows))
        self.skip -= skipped
        return windows[skipped:]

    def own(self, words: list[Word], crosstalk: Crosstalk | None) -> list[Word]:
        """Those of the words that are not another channel's."""
        if crosstalk is None:
            return words
        sources = [crosstalk.source(self.number, word.start, word.spoken_until) for word in words]
        self.leaked.update(source for source in sources if source is not None)
        return [word for word, source in zip(words, sources, strict=True) if source is None]

    def settle(self, windows: int) -> None:
        """Note how far it is, after some more windows."""
        self.done = {
            "windows": self.done.get("windows", 0) + windows,
            "words": stored(self.words),
            "open": len(self.open),
            "leaked": list(self.leaked.items()),
            "session": self.session.state(),
        }

    def go_on(self, done: dict[str, Any]) -> None:
        """Be where a channel was that had noted this, for a recording that is read from its beginning again."""
        if not done:
            return
        self.done, self.skip = done, done["windows"]
        self.words = [Word(*values) for values in done["words"]]
        self.open = self.words[len(self.words) - done["open"] :]
        self.leaked = Counter(dict(done["leaked"]))
        self.session.go_on(done["session"])


class _Recording:
    """One recording on its way through the pipeline."""

    def __init__(self, backend: WindowedBackend, job: Params, about: media.Probe, context: Context) -> None:
        self._b, self._job, self._about, self._context = backend, job, about, context
        self._channels: list[_Channel] = []
        self._crosstalk: Crosstalk | None = None
        wanted = Wanted.of(job.speakers, job.min_speakers, job.max_speakers)
        self._voices = backend._diarizer.session(wanted) if backend._diarizer is not None else None
        self._listens = self._voices is not None and wanted.most > 1
        self._labelled = Labelled(None, ())
        self._label_error = backend._no_labels
        self._script, self._numbers = Script(job.script), Numbers(job.itn)
        self._recognised_s = 0.0
        self._percent = 0.0
        self._read_s = 0.0
        self._listened = 0  # stretches whose voices were heard
        self._known = 0  # of these, by an attempt before
        self._saved_at, self._saving_s = float("-inf"), 0.0
        self._resumed_s: float | None = None
        self._told: list[str] = []  # of the file, each time it is read; so not for a checkpoint
        self.warnings: list[str] = []  # of what was heard

    def transcribe(self) -> dict[str, Any]:
        with Sound(self._about, self._job, self._b._options.ffmpeg, self._context.check) as sound:
            self._crosstalk = sound.crosstalk
            self._channels = [self._channel(number) for number in range(sound.channels)]
            self._go_on()
            for block in sound:
                for channel, samples in zip(self._channels, block, strict=True):
                    for stretch in channel.detector.feed(samples):
                        self._take(channel, stretch)
                self._read_s = sound.position_s
                self._report()
            for channel in self._channels:
                for stretch in channel.detector.finish():
                    self._take(channel, stretch)
            self._told = sound.warnings
        for channel in self._channels:
            channel.queue(channel.packer.flush())
            self._recognise(channel)
            self._finish_segments(channel, [])
        if not self._words:
            self._say_why_empty(sound.peak)
        if len(self._channels) > 1:
            self._label_channels()
        else:
            self._label()
        return self._result()

    def _channel(self, number: int) -> _Channel:
        translate = self._job.task == "translate"
        session = self._b._recogniser.session(self._job.language, self._job.hotword, translate=translate)
        return _Channel(number, SpeechDetector(self._b._vad), session)

    @property
    def _words(self) -> list[Word]:
        return [word for channel in self._channels for word in channel.words]

    def _save(self) -> None:
        """Let another attempt go on from here, unless saving would take more than a small share of the time."""
        now = time.monotonic()
        if now - self._saved_at < SAVING_SHARE * self._saving_s:
            return
        state = {
            "channels": [channel.done for channel in self._channels],
            "voices": None if self._voices is None else self._voices.state(),
            "listened": self._listened,
            "label_error": self._label_error,
            "recognised_s": self._recognised_s,
            "warnings": self.warnings,
        }
        self._context.checkpoint(state)
        self._saved_at = time.monotonic()
        self._saving_s = self._saved_at - now

    def _go_on(self) -> None:
        """Begin where an attempt before this one ended.

        The recording is read from its beginning all the same, so that every window of speech and all there is to tell
        about the sound are as they were; what takes the time, the words and the voices, is not done again. The
        partial results of this attempt begin with those of the one before.
        """
        state = self._context.restore()
        if state is None:
            return
        for channel, done in zip(self._channels, state["channels"], strict=True):
            channel.go_on(done)
            for run in segments(channel.words[: len(channel.words) - len(channel.open)]):
                self._context.partial(segment_record(run))
        if self._voices is not None:
            self._voices.go_on(state["voices"])
        self._known, self._label_error = state["listened"], state["label_error"]
        self._recognised_s = self._resumed_s = state["recognised_s"]
        self.warnings = state["warnings"]

    def _take(self, channel: _Channel, stretch: Stretch) -> None:
        self._context.check()
        self._listened += 1
        known = self._listened <= self._known
        if (
            self._listens
            and self._voices is not None
            and not self._label_error
            and len(self._channels) == 1
            and not known
        ):
            try:
                self._voices.listen(stretch)
            except Exception as error:  # labels are a bonus; the text must come all the same
                self._label_error = f"speakers are not told apart: {type(error).__name__}: {error}"
        channel.queue(channel.packer.add(stretch))
        if channel.waiting_s >= self._job.batch_size_s:
            channel.queue(channel.packer.flush())
            self._recognise(channel)

    def _recognise(self, channel: _Channel) -> None:
        """Recognise the windows that wait; the only slow step."""
        windows = channel.take()
        while windows:
            part, windows = windows[: channel.session.at_once], windows[channel.session.at_once :]
            for heard in channel.session.recognise(part):
                self._context.check()
                words = self._numbers.written(channel.own(heard.words, self._crosstalk))
                if self._b._punctuation is not None:
                    self._b._punctuation.write([*channel.open, *words])
                self._script.write(words)
                self._finish_segments(channel, words)
                self.warnings += map(str, heard.dropped)
                if heard.uncertain:
                    window = heard.window
                    self.warnings.append(f"the text from {window.start:.0f} s to {window.end:.0f} s is uncertain")
                self._recognised_s = heard.window.end
                self._report()
            channel.settle(len(part))
            self._save()
            give_back()  # networks for voices and words free blocks of every size: 100 MB in a quarter of an hour

    def _finish_segments(self, channel: _Channel, words: list[Word]) -> None:
        """Hand out the segments that are complete now; with no words, all of them."""
        channel.words += words
        runs = list(segments([*channel.open, *words]))
        channel.open = runs.pop() if runs and words else []
        for run in runs:
            self._context.partial(segment_record(run))

    def _report(self) -> None:
        self._context.check()
        total = self._about.duration_s or max(self._read_s * 1.25, 60.0)
        read, done = min(1.0, self._read_s / total), min(1.0, self._recognised_s / total)
        # Without a length in the header the estimate grows while reading; progress must not go back for that.
        self._percent = max(self._percent, SHARE_READ * read + (SHARE_DONE - SHARE_READ) * done)
        self._context.progress("inference", self._percent, f"{self._recognised_s:.0f} of {total:.0f} s")

    def _say_why_empty(self, peak: float) -> None:
        if peak < 10 ** (SILENCE_DBFS / 20):
            self.warnings.append("the recording is silent")
        elif not self._recognised_s:
            self.warnings.append("no speech was found: the recording holds only music or noise")
        else:
            self.warnings.append("no words were understood: what sounds like speech may be music, song or noise")

    def _label_channels(self) -> None:
        for channel in self._channels:
            for word in channel.words:
                word.speaker = channel.number
            for source, count in sorted(channel.leaked.items()):
                own, other = speaker_name(channel.number), speaker_name(source)
                self.warnings.append(
                    f"{count} word(s) on the channel of {own} are the voice of {other}, which is louder on its own: "
                    "they were left out there"
                )
        asked = [key for key in ("speakers", "min_speakers", "max_speakers") if getattr(self._job, key) is not None]
        if asked:
            self.warnings.append(f'{", ".join(asked)} not used: with channels="split" each channel is one speaker')

    def _label(self) -> None:
        """Give every word its speaker, from the voices of the whole recording; never fails the job."""
        self._context.progress("processing", SHARE_DONE, "telling speakers apart")
        if not self._words or not self._b._options.diarize:
            return
        try:
            if self._label_error or self._voices is None:
                self.warnings.append(self._label_error)
                return
            self._labelled = self._voices.label(self._words)
            self.warnings += self._labelled.warnings
        except Exception as error:
            for word in self._words:
                word.speaker = None
            self.warnings.append(f"speakers are not told apart: {type(error).__name__}: {error}")

    def _result(self) -> dict[str, Any]:
        session = max(self._channels, key=lambda channel: len(channel.words)).session
        self.warnings += dict.fromkeys(told for channel in self._channels for told in channel.session.warnings())
        if self._b._no_marks and self._words:
            self.warnings.append(self._b._no_marks)
        translated = self._job.task == "translate"
        spoken = {session.language} if translated and self._words else {word.language for word in self._words}
        self.warnings += weak(self._b._recogniser.name, spoken)
        runs = [run for channel in self._channels for run in segments(channel.words)]
        records = [segment_record(run) for run in sorted(runs, key=lambda run: run[0].start)]
        speakers = sorted({word.speaker for word in self._words if word.speaker is not None})
        return {
            "text": join_texts([str(record["text"]) for record in records]),
            "language": session.language,
            "duration_s": round(self._read_s, 3),
            "segments": records,
            "speakers": [speaker_name(speaker) for speaker in speakers],
            "speakers_confidence": self._labelled.confidence,
            "overlaps": [{"start": start, "end": end} for start, end in self._labelled.overlaps],
            "resumed_s": self._resumed_s,
            "warnings": [*self._told, *self.warnings],
        }
