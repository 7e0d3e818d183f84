"""Whisper's encoder with every layer open, in torch, from the CTranslate2 file that is installed anyway.

CTranslate2 hands out the last layer only, so the few arrays of the encoder are read from ``model.bin`` into
torch. The file (little-endian, ``ModelSpec._serialize`` of CTranslate2, binary version 6):

    u32 version, string name, u32 revision, u32 number of variables, then per variable
    string name, u8 rank, u32 × rank shape, u8 type (0 f32, 1 i8, 2 i16, 3 i32, 4 f16), u32 bytes, the data
    (string = u16 length with the closing NUL, UTF-8, NUL)

Everything about the network (width, layers, heads) follows from the arrays. Whisper: Radford et al. 2022.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.audio import Array, mel_filters, mel_spectrogram
from inference.base import EngineError

RATE = 16_000  #: Hz
HOP = 160  #: samples per mel frame (10 ms)
N_FFT = 400
STEP = 320  #: samples per frame of the encoder (20 ms, 50 per second)
MOST_FRAMES = 1500  #: encoder frames per window (30 s): as many as there are position encodings
VERSIONS = (5, 6)
TYPES: Mapping[int, str] = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def load_encoder(folder: Path, layers: tuple[int, ...] | None = None) -> WhisperEncoder:
    """The encoder of a Whisper model in CTranslate2's form, with the layers that are wanted."""
    path = folder / "model.bin"
    if not path.is_file():
        raise EngineError(f"{path} does not exist", hint="python -m inference.weights install whisper-base")
    return WhisperEncoder(read_variables(path), layers)


def read_variables(path: Path, prefix: str = "encoder/") -> dict[str, NDArray[np.generic]]:
    """The arrays of a CTranslate2 ``model.bin`` whose names begin with ``prefix``, without the prefix."""
    found: dict[str, NDArray[np.generic]] = {}
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (version,) = struct.unpack("<I", file.read(4))
            if version not in VERSIONS:
                raise ValueError(f"binary version {version}, not one of {VERSIONS}")
            _string(file)
            _, count = struct.unpack("<II", file.read(8))
            for _ in range(count):
                name = _string(file)
                (rank,) = struct.unpack("<B", file.read(1))
                shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
                kind, length = struct.unpack("<BI", file.read(5))
                if file.tell() + length > size:
                    raise ValueError(f"it ends inside {name!r}")
                if not name.startswith(prefix):
                    file.seek(length, 1)
                    continue
                data = np.frombuffer(file.read(length), dtype=TYPES[kind])
                found[name[len(prefix) :]] = data.reshape(shape)
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} is no CTranslate2 model that can be read: {error}",
            hint="install it again: python -m inference.weights install whisper-base",
        ) from error
    if not found:
        raise EngineError(f"{path} holds no {prefix} arrays", hint="name the folder of a Whisper model")
    return found


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, width) → the same shape."""
        batch, frames, width = x.shape
        joined = self.query_key_value(self.attention_norm(x)).view(batch, frames, 3, self.heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, frames, width))
        hidden: Tensor = x + self.down(functional.gelu(self.up(self.forward_norm(x))))
        return hidden


class WhisperEncoder(nn.Module):
    """Mel frames (batch, bands, 2 n) → one (batch, n, width) tensor per wanted layer, n ≤ 1500, 50 per second.

    Layer 0 is the convolutions with the positions, layer k the output of the k-th transformer layer; the last one
    has the closing norm applied, as in Whisper. Layers above the highest wanted one are not kept.
    """

    def __init__(self, variables: Mapping[str, NDArray[np.generic]], layers: tuple[int, ...] | None = None) -> None:
        super().__init__()
        width, self.bands = variables["conv1/weight"].shape[:2]
        self.width = width
        self.depth = sum(name.endswith("self_attention/linear_0/weight") for name in variables)
        self.wanted = layers if layers is not None else tuple(range(self.depth + 1))
        if not self.wanted or min(self.wanted) < 0 or max(self.wanted) > self.depth:
            raise EngineError(f"layers {self.wanted} were asked of an encoder that has 0 to {self.depth}")
        heads = int(variables["num_heads"]) if "num_heads" in variables else width // 64
        self.conv1 = nn.Conv1d(self.bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(max(self.wanted)))
        self.norm = nn.LayerNorm(width)
        self.positions: Tensor
        self.register_buffer("positions", torch.zeros(MOST_FRAMES, width))
        self.load_state_dict(_state(variables, len(self.layers)))
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, mel: Tensor, position: int = 0) -> list[Tensor]:
        """``position`` is that of the first frame, 0 … 1500 − n: where in Whisper's 30 s the sound lies."""
        x = functional.gelu(self.conv1(mel))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[position : position + x.shape[1]]
        outputs = {0: x}
        for number, layer in enumerate(self.layers, 1):
            outputs[number] = x = layer(x)
        if self.depth in outputs:
            outputs[self.depth] = self.norm(x)
        return [outputs[number] for number in self.wanted]


def _state(variables: Mapping[str, NDArray[np.generic]], layers: int) -> dict[str, Tensor]:
    names = {
        "positions": "position_encodings/encodings",
        **{f"{conv}.{part}": f"{conv}/{part}" for conv in ("conv1", "conv2") for part in ("weight", "bias")},
        **{f"norm.{ours}": f"layer_norm/{theirs}" for ours, theirs in (("weight", "gamma"), ("bias", "beta"))},
    }
    for number in range(layers):
        here, there = f"layers.{number}", f"layer_{number}"
        for norm, block in (("attention_norm", "self_attention"), ("forward_norm", "ffn")):
            names[f"{here}.{norm}.weight"] = f"{there}/{block}/layer_norm/gamma"
            names[f"{here}.{norm}.bias"] = f"{there}/{block}/layer_norm/beta"
        for linear, block in (
            ("query_key_value", "self_attention/linear_0"),
            ("attention_out", "self_attention/linear_1"),
            ("up", "ffn/linear_0"),
            ("down", "ffn/linear_1"),
        ):
            for part in ("weight", "bias"):
                names[f"{here}.{linear}.{part}"] = f"{there}/{block}/{part}"
    try:
        return {ours: _float(variables, theirs) for ours, theirs in names.items()}
    except KeyError as error:
        raise EngineError(f"the Whisper model lacks {error}", hint="use a model converted by CTranslate2 ≥ 3") from None


def _float(variables: Mapping[str, NDArray[np.generic]], name: str) -> Tensor:
    array = variables[name]
    numbers = array.astype(np.float32)
    if array.dtype == np.int8:  # quantised per row: value × scale
        numbers /= variables[f"{name}_scale"].astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    return torch.from_numpy(numbers)


def log_mel(samples: Array, frames: int, bands: int = 80, warp: float = 1.0) -> Array:
    """Whisper's input: (bands, 2 × frames) log10 mel power of 16 kHz samples, the rest of the window silence.

    ``warp`` moves the spectrum along the frequency axis, as a longer (< 1) or shorter (> 1) vocal tract would.
    """
    length = 2 * frames * HOP
    padded = np.zeros(length, np.float32)
    count = min(length, len(samples))
    padded[:count] = samples[:count]
    power = mel_spectrogram(padded, _filters(bands, warp), N_FFT, HOP)[: 2 * frames]
    logarithm = np.log10(np.maximum(power, 1e-10)).T
    return np.asarray((np.maximum(logarithm, logarithm.max() - 8.0) + 4.0) / 4.0, dtype=np.float32)


@lru_cache(maxsize=8)
def _filters(bands: int, warp: float) -> Array:
    filters = mel_filters(RATE, N_FFT, bands)
    if warp == 1.0:
        return filters
    bins = np.arange(filters.shape[1])
    return np.stack([np.interp(bins / warp, bins, row, right=0.0) for row in filters]).astype(np.float32)


def frames_of(samples: int) -> int:
    """Encoder frames that cover so many samples."""
    return math.ceil(samples / STEP)
