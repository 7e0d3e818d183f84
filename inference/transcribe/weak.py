"""Languages in which a model makes many mistakes, and what understands them better."""

from __future__ import annotations

from collections.abc import Collection

#: Language -> its name, and the models of FunASR to install for it. Those that whisper-base was measured to be weak in.
BETTER = {
    "zh": ("Chinese", ("funasr-paraformer", "funasr-sensevoice")),
    "yue": ("Cantonese", ("funasr-sensevoice",)),
}


def weak(model: str, languages: Collection[str | None]) -> list[str]:
    """A warning for each of the languages heard that ``model`` is weak in; only ``whisper-base`` is judged."""
    if model != "whisper-base":
        return []
    return [
        f"whisper-base makes many mistakes in {name}: `python -m inference.weights install {models[0]}` "
        f'and the options "backend": "funasr", "model": "{models[0]}"{_or(models[1:])}; '
        'or whisper-large-v3-turbo as "model" alone'
        for code, (name, models) in BETTER.items()
        if code in languages
    ]


def _or(others: Collection[str]) -> str:
    return "".join(f", or {other} in the same way" for other in others)
