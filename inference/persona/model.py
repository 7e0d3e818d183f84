"""The file of a persona: the network's weights, where they paint, whose face it is, and what was measured.

An .npz of plain arrays (nothing pickled) whose ``about`` is JSON: the version of the format, the numbers that are no
arrays, and the SHA-256 of all arrays, which is checked when the file is read.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import cuda
from inference.base import InputError
from inference.face.people import Traits
from inference.persona.asked import Scale
from inference.persona.network import Network, on_device
from inference.persona.patch import Square

FORMAT = "filepool persona"
VERSION = 1  #: of the file; raise it when a file of before cannot be used any more
MOST_BYTES = 5 << 20  #: of a file
AGAIN = "make it again: python -m pool.submit persona video=VIDEO output=FILE.persona"

State = Mapping[str, Tensor]
Frame = NDArray[np.uint8]
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Persona:
    """One person's mouth. Safe to share between threads, which take turns."""

    state: State  #: of the network
    square: Square
    scale: Scale
    traits: Traits
    report: Mapping[str, Any]  #: what was measured on the part of the video that was held out

    def save(self, path: Path) -> None:
        """Write the file; the same persona gives the same bytes."""
        arrays: dict[str, Any] = {}
        for name, value in self.state.items():
            kind = np.float16 if value.ndim > 1 else np.float32
            arrays[f"network {name}"] = value.cpu().numpy().astype(kind)
        arrays["skin"] = self.square.skin
        arrays |= {"look": self.traits.look, "bones": self.traits.bones, "colour": self.traits.colour}
        about = {
            "format": FORMAT,
            "version": VERSION,
            "scale": asdict(self.scale),
            "report": self.report,
            "sha256": _digest(arrays),
        }
        with path.open("wb") as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)

    @staticmethod
    def load(path: Path) -> Persona:
        """Read what ``save`` wrote; :class:`InputError` for a file that is none, damaged or of another version."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise InputError(f"persona: {path} is larger than a persona ever is", hint=AGAIN)
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(bytes(stored["about"]).decode())
                arrays = {name: stored[name] for name in stored.files if name != "about"}
            if about["format"] != FORMAT:
                raise ValueError(f"it is a file of {about['format']}")
        except FileNotFoundError:
            raise InputError(f"persona: {path} does not exist", hint="make one with the engine persona") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"persona: {path} is no persona: {error}", hint=AGAIN) from error
        if about["version"] != VERSION:
            raise InputError(f"persona: {path} is of version {about['version']}, not {VERSION}", hint=AGAIN)
        if about.get("sha256") != _digest(arrays):
            raise InputError(f"persona: {path} is damaged: its content is not what was written", hint=AGAIN)
        return _persona(path, about, arrays)


def _persona(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Persona:
    prefix = "network "
    state = {
        name.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    try:
        Network().load_state_dict(state)
        return Persona(
            state,
            Square(arrays["skin"]),
            Scale(**{name: (float(pair[0]), float(pair[1])) for name, pair in about["scale"].items()}),
            Traits(arrays["look"], arrays["bones"], arrays["colour"]),
            about["report"],
        )
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"persona: {path} holds another network than this version's: {error}", hint=AGAIN) from error


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        sha.update(value.data)
    return sha.hexdigest()


class Painter:
    """A persona's network, loaded: drawn squares in, the person's own out."""

    def __init__(self, state: State, cover: Array, device: str = "cpu") -> None:
        """``cover`` (SIDE, SIDE): where it may paint, 0..1 (:attr:`Square.cover`)."""
        cuda.require(device)
        self._device = device
        self._network = on_device(device).eval().requires_grad_(False)
        self._network.load_state_dict(dict(state))
        self._cover = torch.from_numpy(cover)[None, None].to(device)
        self._lock = threading.Lock()

    def changes(self, drawn: Frame, asked: Array) -> Array:
        """What to add to squares (B, SIDE, SIDE, 3) that shall show ``asked`` (B, INPUTS), in grey levels."""
        with self._lock, torch.inference_mode():
            pictures = as_tensor(drawn).to(self._device)
            made, mask = self._network(pictures, torch.from_numpy(asked).to(self._device))
            change = (made - pictures) * mask * self._cover * 255
            return np.ascontiguousarray(change.permute(0, 2, 3, 1).cpu().numpy(), np.float32)

    def painted(self, drawn: Frame, asked: Array) -> Frame:
        """The squares (B, SIDE, SIDE, 3) with their changes."""
        return np.asarray(np.clip(np.rint(drawn + self.changes(drawn, asked)), 0, 255), np.uint8)


def as_tensor(pictures: Frame) -> Tensor:
    """(B, H, W, 3) 0..255 → (B, 3, H, W) 0..1, laid out as convolutions like it."""
    whole = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    return whole.contiguous(memory_format=torch.channels_last)
