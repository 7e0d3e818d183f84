"""Languages in which a model makes many mistakes, and what understands them better."""

from __future__ import annotations

from collections.abc import Collection

#: Language -> its name, the model to install for it, and what goes with that. Those that whisper-base was measured to
#: be weak in.
BETTER = {
    "zh": ("Chinese", "sherpa-paraformer", ("sherpa-punctuation",)),
    "yue": ("Cantonese", "sherpa-sensevoice", ()),
}


def weak(model: str, languages: Collection[str | None]) -> list[str]:
    """A warning for each of the languages heard that ``model`` is weak in; only ``whisper-base`` is judged."""
    if model != "whisper-base":
        return []
    return [
        f"whisper-base makes many mistakes in {name}: `python -m inference.weights install {' '.join((best, *more))}` "
        f'and the options "backend": "sherpa", "model": "{best}"; or whisper-large-v3-turbo, as "model" alone'
        for code, (name, best, more) in BETTER.items()
        if code in languages
    ]
