"""What turns windows of speech into words: Whisper, and the models that sherpa-onnx runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inference.transcribe.invented import Dropped
from inference.transcribe.windows import Window
from inference.transcribe.words import Word


@dataclass(frozen=True)
class Heard:
    """What was recognised in one window."""

    window: Window
    words: list[Word]  #: times in the recording
    language: str | None
    dropped: tuple[Dropped, ...] = ()
    uncertain: bool = False  #: every attempt read as repetition or as a guess


class Session(Protocol):
    """The recognition of one channel of one recording, window by window."""

    @property
    def at_once(self) -> int:
        """How many windows are recognised in one pass."""
        ...

    @property
    def language(self) -> str | None:
        """The one that most of the speech so far was in."""
        ...

    def recognise(self, windows: Sequence[Window]) -> Iterator[Heard]:
        """Yield what each window says, in order."""
        ...

    def warnings(self) -> list[str]:
        """What there is to tell after the last window."""
        ...

    def state(self) -> dict[str, Any]:
        """What the windows so far have left behind, for :meth:`go_on`."""
        ...

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Be as a session was that gave this state."""
        ...


class Recogniser(Protocol):
    """A loaded model; runs one recording at a time."""

    name: str  #: of the model, as the options name it
    languages: tuple[str, ...]  #: codes that may be asked for
    punctuates: bool  #: whether its text has marks
    translates: bool  #: whether it can write speech of any language in English

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        ...

    def session(self, language: str | None, hotword: str | None, *, translate: bool = False) -> Session:
        """Recognition of one recording; ``hotword`` holds names and terms to expect."""
        ...
