"""Paraformer and SenseVoice as ONNX files, run by sherpa-onnx: one stretch of speech after another.

These models write a whole stretch at once, and were trained on Chinese first. A model is a folder with
``model.int8.onnx`` or ``model.onnx`` and ``tokens.txt``, as https://github.com/k2-fsa/sherpa-onnx publishes them. Which
of the two kinds it is stands in the notes inside the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from inference.audio import Array
from inference.base import EngineError
from inference.transcribe import models, notes
from inference.transcribe.funasr_result import HANGUL, KANA, WIDE, Reader
from inference.transcribe.params import Options
from inference.transcribe.recogniser import Heard
from inference.transcribe.windows import Window
from inference.transcribe.words import Word, join
from inference.vad import SAMPLE_RATE

TOKENS_FILE = "tokens.txt"
LEAST_S = 0.5  #: a shorter stretch gets silence behind it; below 0.085 s sherpa-onnx fails
WORD_S = 0.5  #: a word that nothing follows soon ends so long after it begins

_SHARED = {"vocab_size", "lfr_window_size", "lfr_window_shift", "neg_mean", "inv_stddev"}
#: What sherpa-onnx 1.13 and 2.0 read of the notes in a file, by kind of model; it ends the process when one is missing.
NOTES: dict[str, set[str]] = {
    "SenseVoice": {
        *_SHARED,
        *("normalize_samples", "with_itn", "without_itn"),
        *("lang_auto", "lang_zh", "lang_en", "lang_ja", "lang_ko", "lang_yue"),
    },
    "Paraformer": _SHARED,
}
LANGUAGES = {"SenseVoice": ("zh", "en", "yue", "ja", "ko"), "Paraformer": ("zh", "en")}


class Sherpa:
    """A loaded model."""

    def __init__(self, options: Options, device: str, threads: int) -> None:
        if find_spec("sherpa_onnx") is None:
            raise EngineError(
                "the backend sherpa needs sherpa-onnx, which is not installed", hint="pip install 'filepool[chinese]'"
            )
        if not device.startswith("cpu"):
            raise EngineError(
                f"the backend sherpa runs on the processor, not on {device}",
                hint='set "device": "cpu" for this engine; it needs no GPU',
            )
        folder = models.sherpa(options.model)
        self.name = options.model or ""
        self._threads = threads
        self._model = notes.file_in(folder, notes.NETWORKS, "model")
        self._tokens = notes.file_in(folder, (TOKENS_FILE,), "model")
        self._kind = kind_of(self._model, self._tokens)
        self.languages = LANGUAGES[self._kind]
        self.punctuates, self.translates = self._kind == "SenseVoice", False
        self._loaded: dict[str, Any] = {}  # by language; at most two
        self._recogniser("auto")

    def files(self) -> list[Path]:
        """The network and its vocabulary."""
        return [self._model, self._tokens]

    def session(self, language: str | None, hotword: str | None, *, translate: bool = False) -> SherpaSession:
        """Recognition of one recording."""
        asked = language if self._kind == "SenseVoice" and language else "auto"
        return SherpaSession(self._kind, self._recogniser(asked), language, hotword)

    def _recogniser(self, language: str) -> Any:
        """sherpa-onnx's own, which is made for one language or for all."""
        import sherpa_onnx

        if language not in self._loaded:
            self._loaded = {name: made for name, made in self._loaded.items() if name == "auto"}
            common = {"tokens": str(self._tokens), "num_threads": self._threads}
            if self._kind == "SenseVoice":  # without its inverse text normalisation there are no marks either
                made = sherpa_onnx.OfflineRecognizer.from_sense_voice(
                    model=str(self._model), language=language, use_itn=True, **common
                )
            else:
                made = sherpa_onnx.OfflineRecognizer.from_paraformer(paraformer=str(self._model), **common)
            self._loaded[language] = made
        return self._loaded[language]


class SherpaSession:
    """Recognises each stretch of the windows of one recording by itself, so that each may have its language."""

    at_once = 1  #: windows

    def __init__(self, kind: str, recogniser: Any, language: str | None, hotword: str | None) -> None:
        self._kind, self._recogniser, self._given, self._hotword = kind, recogniser, language, hotword
        self._spoken_s: dict[str, float] = {}
        self._end = 0.0  # of the last word
        self._words = 0
        self._untimed = 0  # words of stretches for which the model gave no times

    @property
    def language(self) -> str | None:
        """The one that most of the speech so far was in."""
        return max(self._spoken_s, key=lambda name: self._spoken_s[name], default=self._given)

    def recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        """Yield what each window says, in order."""
        for window in windows:
            words = [word for at in range(len(window.pieces)) for word in self._heard(window.part(at, at + 1))]
            yield Heard(window, words, self.language)

    def warnings(self) -> list[str]:
        """That hotwords were not used, and how many times are guesses."""
        told = []
        if self._hotword:
            told.append(f"hotword means nothing to {self._kind} and was not used")
        if self._untimed:
            told.append(
                f"the times of {self._untimed} of {self._words} words are estimates: {self._kind} gives none that fit"
            )
        return told

    def state(self) -> dict[str, Any]:
        """What the windows so far have left behind, for :meth:`go_on`."""
        return {"spoken_s": self._spoken_s, "end": self._end, "words": self._words, "untimed": self._untimed}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Be as a session was that gave this state."""
        self._spoken_s, self._end = dict(state["spoken_s"]), state["end"]
        self._words, self._untimed = state["words"], state["untimed"]

    def _heard(self, part: Window) -> list[Word]:
        """The words of one stretch, with times in the recording."""
        result = self._decoded(part.samples)
        reader = Reader(self._kind, part.seconds)
        said = [{"text": result.text, "timestamps": _timed(result.tokens, result.timestamps, part.seconds)}]
        words = part.place([word for run in reader.read(said).runs for word in run])
        if not words:
            return words
        spoken = self._given or _language(result.lang, join(words))
        for word in words:
            word.start = max(word.start, self._end)
            word.end = max(word.end, word.start)
            self._end = word.end
            word.language = spoken
        self._words += len(words)
        self._untimed += len(words) * bool(reader.warnings)
        self._spoken_s[spoken] = self._spoken_s.get(spoken, 0.0) + part.speech_s
        return words

    def _decoded(self, samples: Array) -> Any:
        """sherpa-onnx's result for some sound."""
        short = int(LEAST_S * SAMPLE_RATE) - len(samples)
        if short > 0:
            samples = np.pad(samples, (0, short))
        stream = self._recogniser.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples)
        self._recogniser.decode_stream(stream)
        if self._kind == "SenseVoice" and not stream.result.lang:  # it names one whenever its network has run
            raise EngineError(
                f"{self._kind} failed on {len(samples) / SAMPLE_RATE:.1f} s of speech; sherpa-onnx says why in the log",
                hint="often there is too little memory: fewer workers on this machine",
            )
        return stream.result


def kind_of(network: Path, tokens: Path) -> str:
    """Which kind of model a file holds, from the notes in it; raises EngineError for one that cannot be run."""
    found = notes.read(network)
    kind = "SenseVoice" if "lang_zh" in found else "Paraformer"
    notes.demand(network, found, NOTES[kind])
    count = sum(1 for line in tokens.read_text("utf-8", "replace").splitlines() if line)
    if count < int(found["vocab_size"]):
        raise EngineError(
            f"{tokens} has {count} tokens, {network.name} writes {found['vocab_size']}: they do not belong together",
            hint="copy both files from one place",
        )
    return kind


def _timed(tokens: Sequence[str], starts: Sequence[float], seconds: float) -> list[dict[str, object]]:
    """The tokens with start and end in seconds; none where there is not a time for each."""
    if len(starts) != len(tokens):
        return []
    ends = [min(after, start + WORD_S) for start, after in itertools.zip_longest(starts, starts[1:], fillvalue=seconds)]
    return [
        {"token": token, "start_time": start, "end_time": max(start, end)}
        for token, start, end in zip(tokens, starts, ends, strict=True)
    ]


def _language(tag: str, text: str) -> str:
    """The language that the model named (``<|zh|>``), else that of the script."""
    named = tag.strip("<|>")
    if named in LANGUAGES["SenseVoice"]:
        return named
    scripts = (("ja", KANA), ("ko", HANGUL), ("zh", WIDE))
    return next((code for code, script in scripts if script.search(text)), "en")
