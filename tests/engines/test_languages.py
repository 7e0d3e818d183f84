"""Which language each stretch of speech is in, where the recogniser's odds are known.

What stands for sound here is the odds themselves: half the amplitude is the probability of Chinese.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference.audio import Array
from inference.transcribe.network import STATES_PER_S
from inference.transcribe.whisper import Decoder, WhisperSession
from inference.transcribe.windows import Packer, Window
from inference.transcribe.words import Word, segment_record, segments
from inference.vad import SAMPLE_RATE, Stretch


class Odds:
    """A network that hands on the amplitude, and whose odds are those of the last word on it."""

    def __init__(self) -> None:
        self.listened = 0

    def encode(self, windows: Sequence[Window]) -> list[Array]:
        return [window.samples for window in windows]

    def states(self, encoded: list[Array]) -> Array:
        self.listened += 1
        return np.stack([samples[:: SAMPLE_RATE // STATES_PER_S, None] for samples in encoded])

    def odds(self, states: Array) -> dict[str, float]:
        speech = states[states > 0]
        chinese = float(np.mean(speech)) if len(speech) else 0.5
        return {"zh": chinese, "en": 1.0 - chinese}


class Session(WhisperSession):
    """A session whose network is told what it hears."""

    def __init__(self) -> None:
        super().__init__(Decoder(None, 1, 1, "cpu"), None, None, None)
        self.heard = Odds()
        self._network = self.heard  # type: ignore[assignment]

    def parts(self, window: Window) -> list[tuple[float, float, str]]:
        """Start, end and language of what a window is cut into."""
        found = self._by_language(window, self.heard.encode([window]), 0)  # type: ignore[arg-type]
        return [(part.start, part.end, language) for part, language in found]


def window(*stretches: tuple[float, float]) -> Window:
    """Stretches of so many seconds with so much Chinese in them, a second apart."""
    packer, at = Packer(60.0), 0
    for seconds, chinese in stretches:
        sound = np.full(int(seconds * SAMPLE_RATE), chinese, np.float32)
        assert packer.add(Stretch(at, sound, at, at + len(sound))) is None
        at += len(sound) + SAMPLE_RATE
    packed = packer.flush()
    assert packed is not None
    return packed


def test_each_language_of_a_window_is_found() -> None:
    mixed = window((4.0, 0.99), (2.0, 0.03), (1.2, 0.3), (3.0, 0.02))
    assert Session().parts(mixed) == [(0.0, 4.0, "zh"), (5.0, 13.2, "en")]
    assert Session().parts(window((3.0, 0.05), (8.0, 0.98), (2.0, 0.04))) == [
        (0.0, 3.0, "en"),
        (4.0, 12.0, "zh"),
        (13.0, 15.0, "en"),
    ]


def test_one_language_is_listened_to_once() -> None:
    session = Session()
    assert session.parts(window((4.0, 0.9), (2.0, 0.7), (0.5, 0.1), (3.0, 0.8))) == [(0.0, 12.5, "zh")]
    assert session.heard.listened == 1


def test_a_doubtful_stretch_does_not_change_the_language() -> None:
    session = Session()
    assert session.parts(window((6.0, 0.02)))[0][2] == "en"
    assert session.parts(window((6.0, 0.55)))[0][2] == "en"
    assert session.parts(window((0.6, 0.99)))[0][2] == "en"
    assert session.parts(window((6.0, 0.9)))[0][2] == "zh"
    assert session.parts(window((6.0, 0.4)))[0][2] == "zh"
    assert session.parts(window((6.0, 0.1)))[0][2] == "en"


def test_segments_end_where_the_language_does() -> None:
    words = [Word(0, 1, "你好", 0.9, language="zh"), Word(1, 2, " hello", 0.9, language="en")]
    records = [segment_record(run) for run in segments(words)]
    assert [(record["text"], record["language"]) for record in records] == [("你好", "zh"), ("hello", "en")]
