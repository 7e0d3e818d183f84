"""The head: frames of Whisper's encoder → mouth channels, closure, speech. About 270,000 numbers.

    three layers (n, 512) each, 50 per second
      → standardised, 64 principal components each, together (n, 192)
      ├→ mean of two, five taps over ± 80 ms → ridge regression → channels ───────────┐
      └→ temporal convolutions (several, alike but for their seed) → channels, ────────┴ mean → (T, 7), 25 per second
           logit of closed lips, logit of speech ───────────────────────────────────────→   (of all: equal shares)

Stored as one .npz without pickles: arrays in float16 where that loses nothing that can be measured.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from inference.articulation.curve import CHANNELS
from inference.base import EngineError

VERSION = 2  #: of the file and of how its parts are put together
OUTPUTS = len(CHANNELS) + 2  #: channels, closed, speech
CLOSED, SPEECH_LOGIT = len(CHANNELS), len(CHANNELS) + 1  #: columns
TAPS = 2  #: frames of 40 ms on either side that the ridge regression sees


@dataclass(frozen=True)
class Meta:
    """What has to be known about a head besides its arrays."""

    layers: tuple[int, ...] = (2, 3, 4)  #: of the encoder; 0 = its convolutions
    width: int = 512  #: of the encoder
    components: int = 64  #: kept per layer
    hidden: int = 64
    blocks: int = 2
    kernel: int = 5
    members: int = 2  #: temporal networks
    close_at: float = 0.5  #: probability from which lips count as closed
    spread: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CHANNELS, 0.7))
    rest: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CHANNELS, 0.0))
    seed: int = 0
    figures: Mapping[str, object] = field(default_factory=dict)  #: how it did on speakers it never saw

    @property
    def inputs(self) -> int:
        """Numbers per half frame that go into regression and networks."""
        return len(self.layers) * self.components


class Reducer(nn.Module):
    """Layers (n, width) each → (n, inputs), standardised and on principal components, unit variance overall."""

    def __init__(self, meta: Meta) -> None:
        super().__init__()
        layers = len(meta.layers)
        self.mean: Tensor
        self.basis: Tensor
        self.register_buffer("mean", torch.zeros(layers, meta.width))
        self.register_buffer("basis", torch.zeros(layers, meta.width, meta.components))

    def forward(self, layers: Tensor) -> Tensor:
        """(n, layers, width) → (n, inputs)."""
        return torch.einsum("nlw,lwc->nlc", layers - self.mean, self.basis).flatten(1)


class Ridge(nn.Module):
    """(2 T, inputs) → (T, channels), linear in five neighbouring frames."""

    def __init__(self, meta: Meta) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros((2 * TAPS + 1) * meta.inputs, len(CHANNELS)))
        self.register_buffer("bias", torch.zeros(len(CHANNELS)))

    def forward(self, reduced: Tensor) -> Tensor:
        """(2 T, inputs) → (T, 5) channels."""
        return taps(reduced) @ self.weight + self.bias


def halved(values: Tensor) -> Tensor:
    """(2 T, …) at 50 per second → (T, …): the mean of each frame's two halves."""
    return values.view(-1, 2, *values.shape[1:]).mean(1)


def taps(reduced: Tensor, reach: int = TAPS) -> Tensor:
    """(2 T, inputs) at 50 per second → (T, (2 reach + 1) × inputs): each frame of 40 ms with its neighbours."""
    frames = halved(reduced)
    padded = torch.cat([frames[:1].expand(reach, -1), frames, frames[-1:].expand(reach, -1)])
    return torch.cat([padded[tap : tap + len(frames)] for tap in range(2 * reach + 1)], dim=1)


class FrameNorm(nn.LayerNorm):
    """Layer norm of (batch, channels, T) over the channels: no frame depends on how long the window is."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, hidden, T) → the same shape, each frame normalised by itself."""
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


class Temporal(nn.Module):
    """(batch, inputs, 2 T) → (batch, OUTPUTS, T) by residual convolutions; sees ± 0.2 s."""

    def __init__(self, meta: Meta, dropout: float = 0.5, input_dropout: float = 0.3) -> None:
        super().__init__()
        hidden = meta.hidden
        self.enter = nn.Sequential(nn.Dropout1d(input_dropout), nn.Conv1d(meta.inputs, hidden, 4, stride=2, padding=1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                FrameNorm(hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Conv1d(hidden, hidden, meta.kernel, padding=meta.kernel // 2),
            )
            for _ in range(meta.blocks)
        )
        self.leave = nn.Sequential(FrameNorm(hidden), nn.GELU(), nn.Dropout(dropout), nn.Conv1d(hidden, OUTPUTS, 1))

    def forward(self, reduced: Tensor) -> Tensor:
        """(batch, inputs, 2 T) → (batch, OUTPUTS, T)."""
        hidden = self.enter(reduced)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        result: Tensor = self.leave(hidden)
        return result


class Head(nn.Module):
    """The whole of it; see the module."""

    def __init__(self, meta: Meta) -> None:
        super().__init__()
        self.meta = meta
        self.reducer = Reducer(meta)
        self.ridge = Ridge(meta)
        self.temporal = nn.ModuleList(Temporal(meta) for _ in range(meta.members))
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Encoder layers (n, width) each, in the order of ``meta.layers`` → (n // 2, OUTPUTS)."""
        stacked = torch.stack(list(layers), dim=1).float()
        return self.read(self.reducer(stacked[: len(stacked) // 2 * 2]))

    @torch.inference_mode()
    def read(self, reduced: Tensor) -> Tensor:
        """(2 T, inputs) → (T, OUTPUTS): channels, logit of closed lips, logit of speech."""
        deep = torch.stack([network(reduced.T[None])[0].T for network in self.temporal])
        channels = torch.cat([self.ridge(reduced)[None], deep[..., : len(CHANNELS)]]).mean(0)
        return torch.cat([channels, deep[..., len(CHANNELS) :].mean(0)], dim=1)

    def save(self, path: Path) -> None:
        """Write the .npz; the same head gives the same bytes."""
        arrays = {
            name: value.numpy().astype(np.float16 if value.ndim > 1 else np.float32)
            for name, value in self.state_dict().items()
        }
        meta = np.frombuffer(json.dumps({"version": VERSION, **asdict(self.meta)}).encode(), np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, meta=meta, **arrays)

    @staticmethod
    def load(path: Path) -> Head:
        """Read what ``save`` wrote; :class:`EngineError` when it is something else."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                described = json.loads(bytes(stored["meta"]).decode())
                state = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored if name != "meta"}
            if described.pop("version") != VERSION:
                raise ValueError("it is of another version")
            head = Head(Meta(**{**described, "layers": tuple(described["layers"])}))
            head.load_state_dict(state)
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
            raise EngineError(
                f"{path} is no articulation head that can be used: {error}",
                hint="leave the option out to use the one that comes with the project",
            ) from error
        return head
