"""From the sound of a voice to the motion of a mouth, any language, any voice.

    samples → Whisper's encoder, cut off after four of its layers → a small head of our own → Articulation, 25 frames
    per second: opening, width, lip height, protrusion, jaw; closed lips; voicing

``Articulator`` is what engines use. ``python -m inference.articulation.train`` makes the weights,
``python -m inference.articulation.evaluate`` judges the recipe on speakers it never saw; ``weights/CARD.md`` says what
is in them. Importing this package is light; torch comes with the first ``Articulator``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference.articulation.curve import CHANNELS, FPS, Articulation, head_path

if TYPE_CHECKING:
    from inference.articulation.articulator import Articulator, Listening

__all__ = ("CHANNELS", "FPS", "Articulation", "Articulator", "Listening", "head_path")


def __getattr__(name: str) -> Any:
    if name in ("Articulator", "Listening"):
        from inference.articulation import articulator

        return getattr(articulator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
