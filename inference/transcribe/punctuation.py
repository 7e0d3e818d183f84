"""Marks for the words of a model that writes none, by CT-Transformer through sherpa-onnx (Mandarin and English).

The model marks a text as a whole and ends it with a full stop. A sentence that is still open is therefore marked anew
together with the words that follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference.transcribe import notes
from inference.transcribe.words import Word

MARKS = "，。？、,.?"  #: what is written, and taken away before a sentence is marked anew
REACH = 4  #: letters that the model may have changed, at most in a row
#: What sherpa-onnx reads of the notes in a file; it ends the process when one is missing.
NOTES = {"tokens", "vocab_size", "punctuations", "unk_symbol"}


class Punctuation:
    """A loaded model."""

    def __init__(self, folder: Path, threads: int) -> None:
        import sherpa_onnx

        self.file = notes.file_in(folder, notes.NETWORKS, "punctuation")
        notes.demand(self.file, notes.read(self.file), NOTES)
        model = sherpa_onnx.OfflinePunctuationModelConfig(ct_transformer=str(self.file), num_threads=threads)
        self._model: Any = sherpa_onnx.OfflinePunctuation(sherpa_onnx.OfflinePunctuationConfig(model=model))

    def write(self, words: Sequence[Word]) -> None:
        """Put marks behind the words, in place of those that may be there."""
        for word in words:
            word.text = word.text.rstrip(MARKS)
        marks = marked([word.text for word in words], self._model.add_punctuation)
        for word, mark in zip(words, marks, strict=True):
            word.text += mark


def marked(texts: Sequence[str], punctuate: Callable[[str], str]) -> list[str]:
    """The mark behind each of the texts, "" for none; ``punctuate`` gives them joined, with marks."""
    joined = "".join(texts).strip()
    if not joined:
        return [""] * len(texts)
    given, at, marks = punctuate(joined).lower(), 0, []
    for text in texts:
        before = at
        for letter in text.strip().lower():  # the model sets spaces of its own
            place = given.find(letter, at, at + REACH)
            at = place + 1 if place >= 0 else at
        mark = given[at : at + 1] if at > before else ""
        marks.append(_alike(mark, text) if mark and mark in MARKS else "")
    return marks


def _alike(mark: str, text: str) -> str:
    """The mark as the script of the word before it has it."""
    return mark.translate(str.maketrans("，。？、", ",.?,")) if text[-1:].isascii() else mark
