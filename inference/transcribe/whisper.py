"""The default recogniser: Whisper on CTranslate2, window by window.

Windows come from the detector already packed and without long silences, so every window is encoded exactly
once and decoded without timestamp tokens (fewer steps, and no text lost after an early closing timestamp);
word times come from cross-attention alignment. A window is followed by 4 s of nothing, not filled up to the
30 s of Whisper's training: measured on short clips that is three times as fast with no more errors. A window
that reads as repetition or as a wild guess is cut in two at a pause and each half recognised afresh, which
ends most loops; speech that cannot be cut is decoded again with repetition forbidden, then at rising
temperatures. Speech in which no word was heard is listened to once more by itself: a recogniser that writes
a whole window at once passes over a sentence now and then. A window that reads as no speech is dropped.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import cuda
from inference.audio import Array
from inference.base import EngineError, InputError
from inference.transcribe.windows import Window
from inference.transcribe.words import Word

MAX_TOKENS = 448  #: prompt and text together, fixed by the model
TOKENS_PER_S = 12.0  #: no language is spoken faster; bounds what a runaway window costs
#: How a window is decoded that cannot be believed and cannot be cut; the first result that can be ends it.
OTHER_WAYS: tuple[dict[str, Any], ...] = (
    {"no_repeat_ngram_size": 4, "repetition_penalty": 1.1},
    {"beam_size": 1, "num_hypotheses": 2, "sampling_topk": 0, "sampling_temperature": 0.4},
    {"beam_size": 1, "num_hypotheses": 2, "sampling_topk": 0, "sampling_temperature": 0.8},
)
MAX_COMPRESSION = 2.4  #: text that packs better than this repeats itself
MIN_LOGPROB = -1.0  #: mean log probability per token of a text that can be believed
NO_SPEECH = 0.6
FRAMES_PER_S = 100
FULL_FRAMES = 3000  #: 30 s, the most the encoder takes
LEAST_FRAMES = 1000  #: with less than 10 s it starts to repeat itself
AFTER_S = 4.0  #: nothing after the speech of a window, so that the text finds its end
DETECT_PROBABILITY = 0.5  #: below this the language that was detected is called uncertain

OPENING = "\"'“¿([{-「『《"
CLOSING = "\"'.。,，!！?？:：”)]}、」』》；;…"
SIMPLIFIED = "以下是普通话的句子，使用简体中文和标点符号。"


@dataclass(frozen=True)
class Heard:
    """What was recognised in one window."""

    window: Window
    words: list[Word]  #: times in the recording
    uncertain: bool = False  #: every attempt read as repetition or as a guess


@dataclass(frozen=True)
class _Decoded:
    tokens: list[int]
    logprob: float
    no_speech: float
    compression: float
    twice: bool  #: the second half says the first half again

    @property
    def acceptable(self) -> bool:
        return self.compression <= MAX_COMPRESSION and self.logprob >= MIN_LOGPROB and not self.twice

    @property
    def silent(self) -> bool:
        return self.no_speech > NO_SPEECH and self.logprob < MIN_LOGPROB


@dataclass(frozen=True)
class _Encoded:
    """Some windows as the encoder left them."""

    output: Any  #: CTranslate2's storage, (windows, frames / 2, width)
    features: Sequence[Array]  #: (bands, ≤ frames) each
    frames: int


@dataclass(frozen=True)
class Decoder:
    """A network and how it decodes."""

    model: Any  #: faster-whisper's, which has no types
    beam: int  #: hypotheses kept
    at_once: int  #: windows per pass
    device: str


class Whisper:
    """A loaded model. ``language`` and prompt belong to a job: see :meth:`session`."""

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        compute_type: str | None,
        threads: int,
        beam_size: int,
        window_batch: int | None,
    ) -> None:
        import ctranslate2
        import faster_whisper
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        kind, _, index = device.partition(":")
        try:
            model: Any = faster_whisper.WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type=compute_type or ("int8" if kind == "cpu" else "float16"),
                cpu_threads=threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, OSError) as error:
            short = cuda.out_of_memory(error, device, f"the weights of {folder}")
            if short is not None:
                raise short from error
            raise EngineError(f"{folder} could not be loaded on {device}: {error}") from error
        self._seed: Any = ctranslate2.set_random_seed
        self.languages = tuple(_LANGUAGE_CODES) if model.model.is_multilingual else ("en",)
        self._decoder = Decoder(model, beam_size, window_batch or (1 if kind == "cpu" else 8), device)

    def session(self, language: str | None, hotword: str | None, prompt: str | None) -> WhisperSession:
        """Recognition of one recording; the same recording gives the same words whatever came before it."""
        self._seed(0)
        settled = "en" if len(self.languages) == 1 else None
        return WhisperSession(self._decoder, language or settled, hotword, prompt)


class WhisperSession:
    """Recognises the windows of one recording; the language is settled by the first of them."""

    def __init__(self, decoder: Decoder, language: str | None, hotword: str | None, prompt: str | None) -> None:
        self._model, self._beam, self._at_once = decoder.model, decoder.beam, decoder.at_once
        self._device = decoder.device
        self._hotword, self._prompt_text = hotword, prompt
        self._tokenizer: Any = None
        self._prompt: list[int] = []
        self.language = language
        self.language_probability = 1.0

    def recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        """Yield what each window says, in order, a few windows at a time; fewer where memory is short for them."""
        at = 0
        while at < len(windows):
            part = windows[at : at + self._at_once]
            try:
                heard = list(self._recognise(part))
            except RuntimeError as error:
                short = cuda.out_of_memory(error, self._device, f"{len(part)} window(s) of speech at a time")
                if short is None:
                    raise
                if len(part) == 1:
                    raise short from error
                self._at_once = len(part) // 2
                continue
            yield from heard
            at += len(part)

    def _recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        longest = max(window.seconds for window in windows)
        frames = _frames(longest)
        features = [self._features(window.samples) for window in windows]
        encoded = self._encode(features, frames)
        if self.language is None:
            name, self.language_probability = self._model.model.detect_language(encoded.output)[0][0]
            self.language = name.strip("<|>")
        if self._tokenizer is None:
            self._prepare(self.language)
        decoded = self._generate(encoded, len(windows), longest, beam_size=self._beam)
        texts = [self._text(result) if result.acceptable else [] for result in decoded]
        aligned = self._align(encoded, texts, windows)
        for window, feature, result, words in zip(windows, features, decoded, aligned, strict=True):
            if result.acceptable or result.silent:
                yield Heard(window, self._filled(window, window.place(words)))
            elif halves := window.halves():
                yield from self._recognise(halves[:1])
                yield from self._recognise(halves[1:])
            else:
                yield self._again(window, feature, result)

    def _features(self, samples: Array) -> Array:
        return np.asarray(self._model.feature_extractor(samples)[..., :-1][..., :FULL_FRAMES], dtype=np.float32)

    def _encode(self, features: Sequence[Array], frames: int) -> _Encoded:
        # Zeros in the normalised spectrum, as faster-whisper fills up; digital silence repeats more.
        padded = np.stack([np.pad(f, ((0, 0), (0, frames - f.shape[1]))) for f in features])
        return _Encoded(self._model.encode(padded), features, frames)

    def _prepare(self, language: str) -> None:
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        self._tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, "transcribe", language)
        text = self._prompt_text or (SIMPLIFIED if language == "zh" else None)
        before = self._tokenizer.encode(" " + text.strip()) if text else []
        self._prompt = model.get_prompt(self._tokenizer, before, without_timestamps=True, hotwords=self._hotword)
        if len(self._prompt) > MAX_TOKENS // 2 + 8:
            raise InputError(
                f"hotword and prompt take {len(self._prompt)} tokens; the model has room for {MAX_TOKENS // 2}",
                hint="shorten the hotword list",
            )

    def _generate(self, encoded: _Encoded, count: int, seconds: float, **how: Any) -> list[_Decoded]:
        limit = min(MAX_TOKENS, len(self._prompt) + 32 + int(seconds * TOKENS_PER_S))
        results = self._model.model.generate(
            encoded.output,
            [self._prompt] * count,
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=[-1],
            **how,
        )
        decoded = []
        for result in results:
            tokens = result.sequences_ids[0]
            text = self._tokenizer.decode(tokens).strip()
            logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
            packed = len(text.encode()) / len(zlib.compress(text.encode())) if text else 0.0
            decoded.append(_Decoded(tokens, logprob, result.no_speech_prob, packed, _said_twice(text)))
        return decoded

    def _filled(self, window: Window, words: list[Word]) -> list[Word]:
        """The words of a window and of what was passed over in it, which is listened to once more by itself."""
        if not words:  # read as silence, which the detector took for speech
            return words
        for gap in window.unheard(words):
            encoded = self._encode([self._features(gap.samples)], _frames(gap.seconds))
            (result,) = self._generate(encoded, 1, gap.seconds, beam_size=self._beam)
            if result.acceptable and result.no_speech <= NO_SPEECH:
                (found,) = self._align(encoded, [self._text(result)], [gap])
                words = sorted([*words, *gap.place(found)], key=lambda word: word.start)
        return words

    def _again(self, window: Window, features: Array, first: _Decoded) -> Heard:
        """Decode one window in other ways until a text can be believed; else the best there was, as uncertain."""
        encoded = self._encode([features], FULL_FRAMES)
        tried = [first]
        for way in OTHER_WAYS:
            tried += self._generate(encoded, 1, window.seconds, **{"beam_size": self._beam, **way})
            if tried[-1].acceptable or tried[-1].silent:
                break
        else:
            plain = [result for result in tried if result.compression <= MAX_COMPRESSION]
            best = max(plain, key=lambda result: result.logprob) if plain else min(tried, key=lambda r: r.compression)
            tried.append(best)
        chosen = tried[-1]
        text = [] if chosen.silent else self._text(chosen)
        (words,) = self._align(encoded, [text], [window])
        return Heard(window, window.place(words), uncertain=bool(words) and not chosen.acceptable)

    def _text(self, decoded: _Decoded) -> list[int]:
        return [token for token in decoded.tokens if token < self._tokenizer.eot]

    def _align(self, encoded: _Encoded, texts: Sequence[list[int]], windows: Sequence[Window]) -> list[list[Word]]:
        """Words with times in their window; none where the text is empty."""
        spoken = [index for index, text in enumerate(texts) if text]
        words: list[list[Word]] = [[] for _ in texts]
        if not spoken:
            return words
        if len(spoken) < len(texts):  # the aligner wants a text for every window it is given
            encoded = self._encode([encoded.features[index] for index in spoken], encoded.frames)
        lengths = [min(encoded.frames, int(windows[index].seconds * FRAMES_PER_S)) for index in spoken]
        spelt = [texts[index] for index in spoken]
        found = self._model.find_alignment(self._tokenizer, spelt, encoded.output, lengths)
        for index, alignment in zip(spoken, found, strict=True):
            words[index] = _attach_punctuation(alignment)
        return words


def _frames(seconds: float) -> int:
    """How much the encoder is given for a window."""
    return min(FULL_FRAMES, max(LEAST_FRAMES, int((seconds + AFTER_S) * FRAMES_PER_S)))


def _said_twice(text: str) -> bool:
    """Whether a text of some length is one sentence said two times over."""
    bare = "".join(mark for mark in text.lower() if mark.isalnum())
    return len(bare) >= 12 and len(bare) % 2 == 0 and bare[: len(bare) // 2] == bare[len(bare) // 2 :]


def _attach_punctuation(alignment: Sequence[dict[str, Any]]) -> list[Word]:
    """Whole words: opening marks go to the word after them, closing marks to the one before."""
    words: list[Word] = []
    opening = ""
    for part in alignment:
        text, bare = str(part["word"]), str(part["word"]).strip()
        if not bare:
            continue
        if all(mark in CLOSING for mark in bare) and words and not (text[0] == " " and bare in OPENING):
            words[-1].text += text.strip() if bare != "-" else text
        elif all(mark in OPENING for mark in bare):
            opening += text
        else:
            lead = " " if text[0] == " " and not opening else ""
            joined = opening + text.lstrip() if opening else lead + text.lstrip()
            words.append(Word(float(part["start"]), float(part["end"]), joined, float(part["probability"])))
            opening = ""
    return _join_hyphens(words)


def _join_hyphens(words: list[Word]) -> list[Word]:
    """``ill`` + ``-disposed`` is one word."""
    joined: list[Word] = []
    for word in words:
        if joined and word.text.startswith("-") and len(word.text) > 1:
            last = joined[-1]
            last.text, last.end = last.text + word.text, word.end
            last.probability = min(last.probability or 0.0, word.probability or 0.0)
        else:
            joined.append(word)
    return joined
