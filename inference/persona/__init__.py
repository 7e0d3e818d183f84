"""The mouth of one person, learned from a video of that person talking: ``"engine": "inference.persona:Training"``.

    examples   a video → what the mesh renderer draws, and what really was there
    network    what makes the one into the other; small enough for every frame of a video
    training   examples → weights, with a state that can be saved
    model      the file of a persona: weights, whose face it is, and its report
    report     the part of the video that was held out, drawn with and without the persona
    patch      the square of a face that is looked at and painted
    engine     parameters in, file out

``lipsync`` paints with it (:mod:`inference.lipsync.finish`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference import extras

if TYPE_CHECKING:
    from inference.persona.engine import Training
    from inference.persona.params import Options, Params

__all__ = ("Options", "Params", "Training")


def __getattr__(name: str) -> Any:
    # lipsync reads personas, and need not pay for importing what makes them.
    if name == "Training":
        with extras.needed("lipsync"):
            from inference.persona.engine import Training
        return Training
    if name in ("Options", "Params"):
        from inference.persona import params

        return getattr(params, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
