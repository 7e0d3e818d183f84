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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference import cuda
from inference.audio import Array
from inference.base import EngineError
from inference.transcribe import models
from inference.transcribe.invented import believable, heard_again, in_order
from inference.transcribe.network import MAX_COMPRESSION, NO_SPEECH, STATES_PER_S, Decoded, Encoded, Network, Speaking
from inference.transcribe.params import Options
from inference.transcribe.recogniser import Heard
from inference.transcribe.windows import Window
from inference.transcribe.words import Word

#: How a window is decoded that cannot be believed and cannot be cut; the first result that can be ends it.
OTHER_WAYS: tuple[dict[str, Any], ...] = (
    {"no_repeat_ngram_size": 4, "repetition_penalty": 1.1},
    {"beam_size": 1, "num_hypotheses": 2, "sampling_topk": 0, "sampling_temperature": 0.4},
    {"beam_size": 1, "num_hypotheses": 2, "sampling_topk": 0, "sampling_temperature": 0.8},
)
TURBO = "turbo"  #: in the name of models that were not trained to translate (README of openai/whisper)
DETECT_PROBABILITY = 0.5  #: below this the language that was detected is called uncertain

# A new language is believed when it is much more likely than the one spoken so far (hysteresis).
NEW_LANGUAGE = 0.6  #: least probability of it …
OLD_LANGUAGE = 0.2  #: … and most of the other one
LISTEN_S = 1.0  #: a shorter stretch tells no language
STRANGE = 0.25  #: another language's probability at which a stretch within a window is listened to by itself …
STRANGE_RATIO = 4.0  #: … when it, or a neighbour like it, is this many times as likely as that of the window


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
        self._network = Network(decoder.model, decoder.beam, "translate" if translate else "transcribe")
        self._at_once, self._device, self._translate = decoder.at_once, decoder.device, translate
        self._hotword, self._prompt_text = hotword, prompt
        self._speakings: dict[str, Speaking] = {}
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
        encoded = self._network.encode(windows)
        if self._given is not None:
            yield from self._say(windows, encoded, self._given)
            return
        parts = [part for index, window in enumerate(windows) for part in self._by_language(window, encoded, index)]
        if len(parts) == len(windows) and len({language for _, language in parts}) == 1:
            yield from self._say(windows, encoded, parts[0][1])
            return
        for window, language in parts:
            yield from self._say([window], self._network.encode([window]), language)

    def _by_language(self, window: Window, encoded: Encoded, index: int) -> list[tuple[Window, str]]:
        """The window, cut where another language begins, with the language of each part."""
        states = self._network.states(encoded)[index : index + 1]
        language = self._settled(self._network.odds(states), window)
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
                spoken = self._settled(self._network.odds(self._network.states(self._network.encode([part]))), part)
            elif found:
                self._current = language
            if not found or found[-1][1] != spoken:
                found.append((at, spoken))
            at = last
        ends = [first for first, _ in found[1:]] + [len(window.pieces)]
        return [(window.part(first, end), spoken) for (first, spoken), end in zip(found, ends, strict=True)]

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
            odds = self._network.odds(states[:, first : last + 1])
            likely = max(odds.values())
            doubts.append(likely / max(odds[language], 1e-6) if likely >= STRANGE else 0.0)
        strange: list[bool] = []
        for odd, group in itertools.groupby(doubts, lambda doubt: doubt > 1):
            run = list(group)
            strange += [odd and max(run) >= STRANGE_RATIO] * len(run)
        return strange

    def _say(self, windows: Sequence[Window], encoded: Encoded, language: str) -> Iterator[Heard]:
        speaking = self._speaking(language)
        decoded = self._network.generate(speaking, encoded, max(window.seconds for window in windows))
        texts = [speaking.text(result) if result.acceptable else [] for result in decoded]
        aligned = self._network.align(speaking, encoded, texts, windows)
        for at, (window, result, words) in enumerate(zip(windows, decoded, aligned, strict=True)):
            if result.acceptable or result.silent:
                yield self._heard(speaking, window, words, result)
            elif halves := window.halves():
                for half in halves:
                    yield from self._say([half], self._network.encode([half]), language)
            else:
                yield self._again(speaking, window, encoded.features[at], result)

    def _heard(
        self, speaking: Speaking, window: Window, found: list[Word], result: Decoded, uncertain: bool = False
    ) -> Heard:
        """The words of a window as they stand in the transcript: in order, and none that nobody said."""
        translated = self._translate
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

    def _speaking(self, language: str) -> Speaking:
        """What decoding a language takes, made when it is first heard."""
        if language not in self._speakings:
            self._speakings[language] = self._network.speaking(language, self._prompt_text, self._hotword)
        return self._speakings[language]

    def _filled(self, speaking: Speaking, window: Window, words: list[Word]) -> list[Word]:
        """The words of a window and of what was passed over in it, which is listened to once more by itself."""
        if not words:  # read as silence, which the detector took for speech
            return words
        for gap in window.unheard(words):
            encoded = self._network.encode([gap])
            (result,) = self._network.generate(speaking, encoded, gap.seconds)
            if result.acceptable and result.no_speech <= NO_SPEECH:
                (found,) = self._network.align(speaking, encoded, [speaking.text(result)], [gap])
                found = heard_again(gap.place(found), words, speaking.prompt_text)
                words = sorted([*words, *found], key=lambda word: word.start)
        return words

    def _again(self, speaking: Speaking, window: Window, features: Array, first: Decoded) -> Heard:
        """Decode one window in other ways until a text can be believed; else the best there was, as uncertain."""
        encoded = self._network.encode_fully(features)
        tried = [first]
        for way in OTHER_WAYS:
            tried += self._network.generate(speaking, encoded, window.seconds, **way)
            if tried[-1].acceptable or tried[-1].silent:
                break
        else:
            plain = [result for result in tried if result.compression <= MAX_COMPRESSION]
            best = max(plain, key=lambda result: result.logprob) if plain else min(tried, key=lambda r: r.compression)
            tried.append(best)
        chosen = tried[-1]
        text = [] if chosen.silent else speaking.text(chosen)
        (words,) = self._network.align(speaking, encoded, [text], [window])
        uncertain = bool(words) and not chosen.acceptable
        return self._heard(speaking, window, words, chosen, uncertain)
