"""A talking portrait: one picture and a recording become a video.

engine = Portrait()
engine.load("cpu", {})
with LocalContext() as context:
    engine.run(engine.check({"image": "face.jpg", "audio": "words.wav", "output": "talking.mp4"}), context)

params      what a job may ask
picture     files to upright opaque pictures
reference   whose face it is, and which part of the picture is shown
motion      how the head moves, made up from a seed
pose_warp   a still head turned, by one remap per frame
texture     the picture to be read between its pixels
blink       lids and eyes
animate     all of it in one frame
mesh_backend, echomimic_backend (echomimic)   what makes frames

Importing this package is light; models load in ``Portrait.load``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference import extras

if TYPE_CHECKING:
    from inference.portrait.engine import Portrait
    from inference.portrait.params import Options, Params

__all__ = ["Options", "Params", "Portrait"]


def __getattr__(name: str) -> Any:
    # The parameters can be read where the packages of the engine are not installed.
    if name == "Portrait":
        with extras.needed("portrait"):
            from inference.portrait.engine import Portrait
        return Portrait
    if name in ("Options", "Params"):
        from inference.portrait import params

        return getattr(params, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
