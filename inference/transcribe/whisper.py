"""The default recogniser: Whisper on CTranslate2, window by window.

Windows come from the detector already packed and without long silences, so every window is encoded exactly
once and decoded without timestamp tokens (fewer steps, and no text lost after an early closing timestamp);
word times come from cross-attention alignment. A window is followed by 4 s of nothing, not filled up to the
30 s of Whisper's training: measured on short clips that is three times as fast with no more errors. A window
that reads as repetition or as a wild guess is cut in two at a pause and each half recognised afresh, which
ends most loops; speech that cannot be cut is decoded again with repetition forbidden, then at rising
temperatures. Speech in which no word was heard is listened to once more by itself: a recogniser that writes
a whole window at once passes over a sentence now and then. A window that reads as no speech is dropped.

The language is that of the stretch of speech, not of the file: each window's is detected, and stretches in it whose
part of the encoding sounds like another language are listened to by themselves. It changes only when the new one is
much more likely than the old.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import cuda
from inference.audio import Array
from inference.base import EngineError, InputError
from inference.transcribe import models
from inference.transcribe.invented import believable, heard_again, in_order
from inference.transcribe.params import Options
from inference.transcribe.recogniser import Heard
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
TURBO = "turbo"  #: in the name of models that were not trained to translate (README of openai/whisper)
DETECT_PROBABILITY = 0.5  #: below this the language that was detected is called uncertain

# A new language is believed when it is much more likely than the one spoken so far (hysteresis).
NEW_LANGUAGE = 0.6  #: least probability of it …
OLD_LANGUAGE = 0.2  #: … and most of the other one
LISTEN_S = 1.0  #: a shorter stretch tells no language
STRANGE = 0.25  #: another language's probability at which a stretch within a window is listened to by itself …
STRANGE_RATIO = 4.0  #: … when it, or a neighbour like it, is this many times as likely as that of the window
STATES_PER_S = 50  #: vectors per second that the encoder gives

OPENING = "\"'“¿([{-「『《"
CLOSING = "\"'.。,，!！?？:：”)]}、」』》；;…"
SIMPLIFIED = "以下是普通话的句子，使用简体中文和标点符号。"


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
class _Speaking:
    """One language as it is decoded."""

    language: str
    tokenizer: Any  #: faster-whisper's
    prompt: list[int]
    prompt_text: str  #: what stands before the text, as a style


@dataclass(frozen=True)
class Decoder:
    """A network and how it decodes."""

    model: Any  #: faster-whisper's, which has no types
    beam: int  #: hypotheses kept
    at_once: int  #: windows per pass
    device: str


class Whisper:
    """A loaded model. Language and hotwords belong to a job: see :meth:`session`."""

    punctuates = True

    def __init__(self, options: Options, device: str, threads: int) -> None:
        import ctranslate2
        import faster_whisper
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        self.name = options.model or "whisper-base"
        self._folder = folder = models.whisper(options.model)
        self._prompt = options.initial_prompt
        kind, _, index = device.partition(":")
        try:
            model: Any = faster_whisper.WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type=options.compute_type or ("int8" if kind == "cpu" else "float16"),
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
        self.translates = model.model.is_multilingual and TURBO not in self.name.lower()
        at_once = options.window_batch or (1 if kind == "cpu" else 8)
        self._decoder = Decoder(model, options.beam_size, at_once, device)

    def files(self) -> list[Path]:
        """Every file of the model's folder, without notes of an installer."""
        return [path for path in self._folder.iterdir() if path.is_file() and not path.name.startswith(".")]

    def session(self, language: str | None, hotword: str | None, *, translate: bool = False) -> WhisperSession:
        """Recognition of one recording. translate: its words in English.

        It gives the same words whatever came before it, except in windows decoded by sampling: CTranslate2 seeds the
        generator of a thread once.
        """
        self._seed(0)
        settled = "en" if len(self.languages) == 1 else None
        return WhisperSession(self._decoder, language or settled, hotword, self._prompt, translate=translate)


class WhisperSession:
    """Recognises the windows of one recording; a language that is not given is found for each stretch of speech."""

    def __init__(
        self,
        decoder: Decoder,
        language: str | None,
        hotword: str | None,
        prompt: str | None,
        *,
        translate: bool = False,
    ) -> None:
        self._model, self._beam, self._at_once = decoder.model, decoder.beam, decoder.at_once
        self._device = decoder.device
        self._task = "translate" if translate else "transcribe"
        self._hotword, self._prompt_text = hotword, prompt
        self._speakings: dict[str, _Speaking] = {}
        self._given = language
        self._current = language
        self._sure: dict[str, float] = {} if language is None else {language: 1.0}
        self._spoken_s: dict[str, float] = {}
        self._end = 0.0  # of the last word

    @property
    def at_once(self) -> int:
        """How many windows are recognised in one pass."""
        return self._at_once

    @property
    def language(self) -> str | None:
        """The one that most of the speech so far was in."""
        return max(self._spoken_s, key=lambda name: self._spoken_s[name], default=self._given)

    @property
    def language_probability(self) -> float:
        """The highest with which that language was detected; 1.0 when it was given."""
        return self._sure.get(self.language or "", 1.0)

    def warnings(self) -> list[str]:
        """That the language is a guess."""
        if not self._spoken_s or self.language_probability >= DETECT_PROBABILITY:
            return []
        return [
            f"the language is uncertain: {self.language} with probability {self.language_probability:.2f}; "
            "set `language` if it is another"
        ]

    def state(self) -> dict[str, Any]:
        """What the windows so far have left behind, for :meth:`go_on`."""
        return {"current": self._current, "sure": self._sure, "spoken_s": self._spoken_s, "end": self._end}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Be as a session was that gave this state."""
        self._current, self._end = state["current"], state["end"]
        self._sure, self._spoken_s = dict(state["sure"]), dict(state["spoken_s"])

    def recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        """Yield what each window says, in order, a few windows at a time; fewer where memory is short for them."""
        at = 0
        while at < len(windows):
            part = windows[at : at + self._at_once]
            before = self._current, dict(self._sure), dict(self._spoken_s), self._end
            try:
                heard = list(self._recognise(part))
            except RuntimeError as error:
                short = cuda.out_of_memory(error, self._device, f"{len(part)} window(s) of speech at a time")
                if short is None:
                    raise
                if len(part) == 1:
                    raise short from error
                self._at_once = len(part) // 2
                self._current, self._sure, self._spoken_s, self._end = before
                continue
            yield from heard
            at += len(part)

    def _recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        encoded = self._encoded(windows)
        if self._given is not None:
            yield from self._say(windows, encoded, self._given)
            return
        parts = [part for index, window in enumerate(windows) for part in self._by_language(window, encoded, index)]
        if len(parts) == len(windows) and len({language for _, language in parts}) == 1:
            yield from self._say(windows, encoded, parts[0][1])
            return
        for window, language in parts:
            yield from self._say([window], self._encoded([window]), language)

    def _by_language(self, window: Window, encoded: _Encoded, index: int) -> list[tuple[Window, str]]:
        """The window, cut where another language begins, with the language of each part."""
        states = self._states(encoded)[index : index + 1]
        language = self._settled(self._odds(states), window)
        strange = self._strange(states, window, language)
        if not any(strange) or all(strange):
            return [(window, language)]
        found: list[tuple[int, str]] = []  # first stretch and language of each part
        at = 0
        for odd, group in itertools.groupby(strange):
            last = at + len(list(group))
            spoken = language
            if odd:
                part = window.part(at, last)
                spoken = self._settled(self._odds(self._states(self._encoded([part]))), part)
            elif found:
                self._current = language
            if not found or found[-1][1] != spoken:
                found.append((at, spoken))
            at = last
        ends = [first for first, _ in found[1:]] + [len(window.pieces)]
        return [(window.part(first, end), spoken) for (first, spoken), end in zip(found, ends, strict=True)]

    def _states(self, encoded: _Encoded) -> Array:
        """What the encoder made of some windows: (windows, states, width)."""
        import ctranslate2

        return np.array(encoded.output.to_device(ctranslate2.Device.cpu))

    def _odds(self, states: Array) -> dict[str, float]:
        """Probability of each language in what the encoder made of some speech: (1, states, width)."""
        import ctranslate2

        storage = ctranslate2.StorageView.from_array(np.ascontiguousarray(states))
        return {name.strip("<|>"): share for name, share in self._model.model.detect_language(storage)[0]}

    def _settled(self, odds: dict[str, float], window: Window) -> str:
        """The language of some speech, given the one before it."""
        likely = max(odds, key=lambda name: odds[name])
        now = self._current or likely
        guessed = self._sure.get(now, 0.0) < DETECT_PROBABILITY <= odds[likely]
        sure = odds[likely] >= NEW_LANGUAGE and odds[now] <= OLD_LANGUAGE and window.speech_s >= LISTEN_S
        if guessed or sure:
            now = likely
        self._sure[now] = max(self._sure.get(now, 0.0), odds[now])
        self._current = now
        return now

    def _strange(self, states: Array, window: Window, language: str) -> list[bool]:
        """Whether each stretch sounds like another language than its window's: runs with one that clearly does.

        The encoder mixes what it hears little enough over time that its vectors of one stretch tell.
        """
        if len(window.pieces) == 1:
            return [False]
        doubts: list[float] = []  # how many times as likely as that of the window another language is
        for piece in window.pieces:
            first, last = (int(at * STATES_PER_S) for at in (piece.offset, piece.offset + piece.length))
            if piece.length < LISTEN_S:
                doubts.append(doubts[-1] if doubts else 0.0)
                continue
            odds = self._odds(states[:, first : last + 1])
            likely = max(odds.values())
            doubts.append(likely / max(odds[language], 1e-6) if likely >= STRANGE else 0.0)
        strange: list[bool] = []
        for odd, group in itertools.groupby(doubts, lambda doubt: doubt > 1):
            run = list(group)
            strange += [odd and max(run) >= STRANGE_RATIO] * len(run)
        return strange

    def _say(self, windows: Sequence[Window], encoded: _Encoded, language: str) -> Iterator[Heard]:
        speaking = self._speaking(language)
        longest = max(window.seconds for window in windows)
        decoded = self._generate(speaking, encoded, len(windows), longest, beam_size=self._beam)
        texts = [_text(speaking, result) if result.acceptable else [] for result in decoded]
        aligned = self._align(speaking, encoded, texts, windows)
        for at, (window, result, words) in enumerate(zip(windows, decoded, aligned, strict=True)):
            if result.acceptable or result.silent:
                yield self._heard(speaking, window, words, result)
            elif halves := window.halves():
                for half in halves:
                    yield from self._say([half], self._encoded([half]), language)
            else:
                yield self._again(speaking, window, encoded.features[at], result)

    def _heard(
        self, speaking: _Speaking, window: Window, found: list[Word], result: _Decoded, uncertain: bool = False
    ) -> Heard:
        """The words of a window as they stand in the transcript: in order, and none that nobody said."""
        translated = self._task == "translate"
        placed = window.place(found)
        words, dropped = believable(placed, speaking.prompt_text, result.no_speech, translated=translated)
        if not uncertain and not translated:  # a translation leaves sounds without a word of their own
            words = self._filled(speaking, window, words)
        words = in_order(words, self._end)
        for word in words:
            word.language = "en" if translated else speaking.language
        if words:
            self._end = words[-1].end
            self._spoken_s[speaking.language] = self._spoken_s.get(speaking.language, 0.0) + window.speech_s
        return Heard(window, words, speaking.language, tuple(dropped), uncertain)

    def _encoded(self, windows: Sequence[Window]) -> _Encoded:
        longest = max(window.seconds for window in windows)
        return self._encode([self._features(window.samples) for window in windows], _frames(longest))

    def _features(self, samples: Array) -> Array:
        return np.asarray(self._model.feature_extractor(samples)[..., :-1][..., :FULL_FRAMES], dtype=np.float32)

    def _encode(self, features: Sequence[Array], frames: int) -> _Encoded:
        # Zeros in the normalised spectrum, as faster-whisper fills up; digital silence repeats more.
        padded = np.stack([np.pad(f, ((0, 0), (0, frames - f.shape[1]))) for f in features])
        return _Encoded(self._model.encode(padded), features, frames)

    def _speaking(self, language: str) -> _Speaking:
        """What decoding a language takes, made when it is first heard."""
        if language in self._speakings:
            return self._speakings[language]
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, self._task, language)
        text = self._prompt_text or (SIMPLIFIED if language == "zh" and self._task == "transcribe" else None)
        before = tokenizer.encode(" " + text.strip()) if text else []
        prompt = model.get_prompt(tokenizer, before, without_timestamps=True, hotwords=self._hotword)
        if len(prompt) > MAX_TOKENS // 2 + 8:
            raise InputError(
                f"hotword and prompt take {len(prompt)} tokens; the model has room for {MAX_TOKENS // 2}",
                hint="shorten the hotword list",
            )
        self._speakings[language] = _Speaking(language, tokenizer, prompt, text or "")
        return self._speakings[language]

    def _generate(
        self, speaking: _Speaking, encoded: _Encoded, count: int, seconds: float, **how: Any
    ) -> list[_Decoded]:
        limit = min(MAX_TOKENS, len(speaking.prompt) + 32 + int(seconds * TOKENS_PER_S))
        results = self._model.model.generate(
            encoded.output,
            [speaking.prompt] * count,
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=[-1],
            **how,
        )
        decoded = []
        for result in results:
            tokens = result.sequences_ids[0]
            text = speaking.tokenizer.decode(tokens).strip()
            logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
            packed = len(text.encode()) / len(zlib.compress(text.encode())) if text else 0.0
            decoded.append(_Decoded(tokens, logprob, result.no_speech_prob, packed, _said_twice(text)))
        return decoded

    def _filled(self, speaking: _Speaking, window: Window, words: list[Word]) -> list[Word]:
        """The words of a window and of what was passed over in it, which is listened to once more by itself."""
        if not words:  # read as silence, which the detector took for speech
            return words
        for gap in window.unheard(words):
            encoded = self._encode([self._features(gap.samples)], _frames(gap.seconds))
            (result,) = self._generate(speaking, encoded, 1, gap.seconds, beam_size=self._beam)
            if result.acceptable and result.no_speech <= NO_SPEECH:
                (found,) = self._align(speaking, encoded, [_text(speaking, result)], [gap])
                found = heard_again(gap.place(found), words, speaking.prompt_text)
                words = sorted([*words, *found], key=lambda word: word.start)
        return words

    def _again(self, speaking: _Speaking, window: Window, features: Array, first: _Decoded) -> Heard:
        """Decode one window in other ways until a text can be believed; else the best there was, as uncertain."""
        encoded = self._encode([features], FULL_FRAMES)
        tried = [first]
        for way in OTHER_WAYS:
            tried += self._generate(speaking, encoded, 1, window.seconds, **{"beam_size": self._beam, **way})
            if tried[-1].acceptable or tried[-1].silent:
                break
        else:
            plain = [result for result in tried if result.compression <= MAX_COMPRESSION]
            best = max(plain, key=lambda result: result.logprob) if plain else min(tried, key=lambda r: r.compression)
            tried.append(best)
        chosen = tried[-1]
        text = [] if chosen.silent else _text(speaking, chosen)
        (words,) = self._align(speaking, encoded, [text], [window])
        uncertain = bool(words) and not chosen.acceptable
        return self._heard(speaking, window, words, chosen, uncertain)

    def _align(
        self, speaking: _Speaking, encoded: _Encoded, texts: Sequence[list[int]], windows: Sequence[Window]
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


def _text(speaking: _Speaking, decoded: _Decoded) -> list[int]:
    return [token for token in decoded.tokens if token < speaking.tokenizer.eot]


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
