"""Chinese in one script: the words of a run are converted together, for a phrase tells which character is meant."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from inference.base import InputError
from inference.transcribe.words import Word

Wanted = Literal["simplified", "traditional"]
CONVERSIONS = {"simplified": "t2s", "traditional": "s2t"}  #: OpenCC's
CHINESE = ("zh", "yue")


def require() -> None:
    """Raise :class:`InputError` with the command when OpenCC is not installed."""
    if find_spec("opencc") is None:
        raise InputError(
            "script: it needs opencc, which is not installed where the engine runs",
            hint="pip install 'filepool[chinese]'",
        )


class Script:
    """Converts words to one script; with None leaves them as they are."""

    def __init__(self, wanted: Wanted | None) -> None:
        self._converter: Any = None
        if wanted is not None:
            import opencc

            self._converter = opencc.OpenCC(CONVERSIONS[wanted])

    def write(self, words: Sequence[Word]) -> None:
        """Convert the words that are Chinese, in place."""
        if self._converter is None:
            return
        for chinese, group in itertools.groupby(words, lambda word: word.language in CHINESE):
            if chinese:
                self._run(list(group))

    def _run(self, words: Sequence[Word]) -> None:
        text = "".join(word.text for word in words)
        converted = self._converter.convert(text)
        if len(converted) != len(text):  # a phrase became longer or shorter: nobody knows whose its characters are
            for word in words:
                word.text = self._converter.convert(word.text)
            return
        at = 0
        for word in words:
            word.text, at = converted[at : at + len(word.text)], at + len(word.text)
