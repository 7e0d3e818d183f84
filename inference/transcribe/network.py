"""Whisper's network as the recogniser calls it: sound → encoding → languages, texts, times of words.

Windows of one pass are filled up to the longest of them, and 4 s further, with nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.audio import Array
from inference.base import InputError
from inference.transcribe.windows import Window
from inference.transcribe.words import Word

MAX_TOKENS = 448  #: prompt and text together, fixed by the model
TOKENS_PER_S = 12.0  #: no language is spoken faster; bounds what a runaway window costs
MAX_COMPRESSION = 2.4  #: text that packs better than this repeats itself
MIN_LOGPROB = -1.0  #: mean log probability per token of a text that can be believed
NO_SPEECH = 0.6
FRAMES_PER_S = 100
FULL_FRAMES = 3000  #: 30 s, the most the encoder takes
LEAST_FRAMES = 1000  #: with less than 10 s it starts to repeat itself
AFTER_S = 4.0  #: nothing after the speech of a window, so that the text finds its end
STATES_PER_S = 50  #: vectors per second that the encoder gives

OPENING = "\"'“¿([{-「『《"
CLOSING = "\"'.。,，!！?？:：”)]}、」』》；;…"
SIMPLIFIED = "以下是普通话的句子，使用简体中文和标点符号。"


@dataclass(frozen=True)
class Decoded:
    """One text for a window."""

    tokens: list[int]
    logprob: float  #: mean per token
    no_speech: float  #: probability that there is none
    compression: float  #: bytes of the text per byte that zlib packs it in
    twice: bool  #: the second half says the first half again

    @property
    def acceptable(self) -> bool:
        """Whether it reads neither as repetition nor as a wild guess."""
        return self.compression <= MAX_COMPRESSION and self.logprob >= MIN_LOGPROB and not self.twice

    @property
    def silent(self) -> bool:
        """Whether it says that nobody speaks."""
        return self.no_speech > NO_SPEECH and self.logprob < MIN_LOGPROB


@dataclass(frozen=True)
class Encoded:
    """Some windows as the encoder left them."""

    output: Any  #: CTranslate2's storage, (windows, frames / 2, width)
    features: Sequence[Array]  #: (bands, ≤ frames) each
    frames: int


@dataclass(frozen=True)
class Speaking:
    """One language as it is decoded."""

    language: str
    tokenizer: Any  #: faster-whisper's
    prompt: list[int]
    prompt_text: str  #: what stands before the text, as a style

    def text(self, decoded: Decoded) -> list[int]:
        """The tokens that are words, without those that mark something."""
        return [token for token in decoded.tokens if token < self.tokenizer.eot]


class Network:
    """A loaded network, for one task."""

    def __init__(self, model: Any, beam: int, task: str) -> None:
        self._model = model  # faster-whisper's, which has no types
        self._beam = beam  # hypotheses kept
        self._task = task

    def encode(self, windows: Sequence[Window]) -> Encoded:
        """Some windows in one pass."""
        longest = max(window.seconds for window in windows)
        return self._encode([self._features(window.samples) for window in windows], _frames(longest))

    def encode_fully(self, features: Array) -> Encoded:
        """One window again, filled up to the 30 s of the training."""
        return self._encode([features], FULL_FRAMES)

    def states(self, encoded: Encoded) -> Array:
        """What the encoder made of some windows: (windows, states, width)."""
        import ctranslate2

        return np.array(encoded.output.to_device(ctranslate2.Device.cpu))

    def odds(self, states: Array) -> dict[str, float]:
        """Probability of each language in what the encoder made of some speech: (1, states, width)."""
        import ctranslate2

        storage = ctranslate2.StorageView.from_array(np.ascontiguousarray(states))
        return {name.strip("<|>"): share for name, share in self._model.model.detect_language(storage)[0]}

    def speaking(self, language: str, prompt: str | None, hotword: str | None) -> Speaking:
        """What decoding a language takes; raises InputError when prompt and hotwords are too long for the model."""
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, self._task, language)
        text = prompt or (SIMPLIFIED if language == "zh" and self._task == "transcribe" else None)
        before = tokenizer.encode(" " + text.strip()) if text else []
        tokens = model.get_prompt(tokenizer, before, without_timestamps=True, hotwords=hotword)
        if len(tokens) > MAX_TOKENS // 2 + 8:
            raise InputError(
                f"hotword and prompt take {len(tokens)} tokens; the model has room for {MAX_TOKENS // 2}",
                hint="shorten the hotword list",
            )
        return Speaking(language, tokenizer, tokens, text or "")

    def generate(self, speaking: Speaking, encoded: Encoded, seconds: float, **how: Any) -> list[Decoded]:
        """A text for each window of at most so many seconds; ``how`` is CTranslate2's, for other than a beam."""
        limit = min(MAX_TOKENS, len(speaking.prompt) + 32 + int(seconds * TOKENS_PER_S))
        results = self._model.model.generate(
            encoded.output,
            [speaking.prompt] * len(encoded.features),
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=[-1],
            **{"beam_size": self._beam, **how},
        )
        decoded = []
        for result in results:
            tokens = result.sequences_ids[0]
            text = speaking.tokenizer.decode(tokens).strip()
            logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
            packed = len(text.encode()) / len(zlib.compress(text.encode())) if text else 0.0
            decoded.append(Decoded(tokens, logprob, result.no_speech_prob, packed, _said_twice(text)))
        return decoded

    def align(
        self, speaking: Speaking, encoded: Encoded, texts: Sequence[list[int]], windows: Sequence[Window]
    ) -> list[list[Word]]:
        """Words with times in their window; none where the text is empty."""
        spoken = [index for index, text in enumerate(texts) if text]
        words: list[list[Word]] = [[] for _ in texts]
        if not spoken:
            return words
        if len(spoken) < len(texts):  # the aligner wants a text for every window it is given
            encoded = self._encode([encoded.features[index] for index in spoken], encoded.frames)
        lengths = [min(encoded.frames, int(windows[index].seconds * FRAMES_PER_S)) for index in spoken]
        spelt = [texts[index] for index in spoken]
        found = self._model.find_alignment(speaking.tokenizer, spelt, encoded.output, lengths)
        for index, alignment in zip(spoken, found, strict=True):
            words[index] = _attach_punctuation(alignment)
        return words

    def _features(self, samples: Array) -> Array:
        return np.asarray(self._model.feature_extractor(samples)[..., :-1][..., :FULL_FRAMES], dtype=np.float32)

    def _encode(self, features: Sequence[Array], frames: int) -> Encoded:
        # Zeros in the normalised spectrum, as faster-whisper fills up; digital silence repeats more.
        padded = np.stack([np.pad(f, ((0, 0), (0, frames - f.shape[1]))) for f in features])
        return Encoded(self._model.encode(padded), features, frames)


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
