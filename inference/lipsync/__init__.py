"""A person in a video says something else: ``"engine": "inference.lipsync:LipSync"``.

    sound     what is said, as it is heard            speech   articulation → this face's openings
    frames    the template, forward and back          render/  the mesh renderer
    pipeline  segments decoded, painted, encoded side by side, then joined
    mesh_backend, wav2lip, musetalk   the backends     engine   parameters in, video out

Importing this package is light; models load in ``LipSync.load``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference import extras

if TYPE_CHECKING:
    from inference.lipsync.engine import LipSync
    from inference.lipsync.params import Options, Params

__all__ = ("LipSync", "Options", "Params")


def __getattr__(name: str) -> Any:
    # Parts of this package serve other engines, which need not pay for importing this one.
    if name == "LipSync":
        with extras.needed("lipsync"):
            from inference.lipsync.engine import LipSync
        return LipSync
    if name in ("Options", "Params"):
        from inference.lipsync import params

        return getattr(params, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
