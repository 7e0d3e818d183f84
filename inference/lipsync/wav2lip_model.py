"""The Wav2Lip generator, with the parameter names and shapes of the published checkpoints.

A picture of a face (its lower half blacked out, with the whole face behind it: six channels) goes down a
ladder of convolutions, 0.2 s of sound down another; the sound's vector is decoded back up the ladder, each
step seeing the face's features of that size. Architecture: Prajwal et al., "A Lip Sync Expert Is All You Need
for Speech to Lip Generation In the Wild", ACM Multimedia 2020. Two families are known:

    96    96×96 pixels, ReLU: the authors' own (wav2lip.pth, wav2lip_gan.pth)
    288   288×288 pixels, PReLU (or ReLU): the enlarged ladder that circulates as wav2lip 288x288

The weights that are public were trained on data that may not be used commercially.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inference import checkpoints
from inference.base import EngineError

MEL_BANDS, MEL_FRAMES = 80, 16  #: one piece of sound: 16 frames of 12.5 ms
COUNTER = "num_batches_tracked"  #: of a BatchNorm; not in old checkpoints, and not needed


class Step(NamedTuple):
    """One convolution and the residual layers behind it."""

    inside: int  #: channels in
    out: int
    kernel: int
    stride: int | tuple[int, int]
    padding: int
    behind: int  #: residual layers


class Growth(NamedTuple):
    """One transposed convolution and the residual layers behind it."""

    inside: int  #: channels in
    out: int
    extra: int  #: row at the end
    stride: int = 2
    padding: int = 1
    behind: int = 2  #: residual layers


@dataclass(frozen=True)
class Family:
    """One size of the network."""

    side: int  #: pixels
    down: tuple[Step, ...]  #: the face, halved at each step
    corners: int  #: closing steps without padding that bring 3×3 (or 5×5 and 3×3) to one pixel
    up: tuple[Growth, ...]  #: each doubles the size

    @property
    def name(self) -> str:
        """Its side, as text."""
        return str(self.side)


FAMILIES = (
    Family(
        side=96,
        down=(
            Step(6, 16, 7, 1, 3, 0),
            Step(16, 32, 3, 2, 1, 2),
            Step(32, 64, 3, 2, 1, 3),
            Step(64, 128, 3, 2, 1, 2),
            Step(128, 256, 3, 2, 1, 2),
            Step(256, 512, 3, 2, 1, 1),
        ),
        corners=1,
        up=(Growth(1024, 512, 1), Growth(768, 384, 1), Growth(512, 256, 1), Growth(320, 128, 1), Growth(160, 64, 1)),
    ),
    Family(
        side=288,
        down=(
            Step(6, 16, 7, 1, 3, 0),
            Step(16, 32, 5, 2, 2, 1),
            Step(32, 32, 3, 2, 1, 2),
            Step(32, 64, 3, 2, 1, 3),
            Step(64, 128, 3, 2, 1, 2),
            Step(128, 256, 3, 2, 1, 2),
            Step(256, 512, 3, 2, 1, 1),
        ),
        corners=2,
        # 3 → 5 → 9 pixels, then doubled
        up=(
            Growth(1024, 512, 0),
            Growth(1024, 512, 0),
            Growth(768, 384, 1),
            Growth(512, 256, 1),
            Growth(320, 128, 1),
            Growth(160, 64, 1),
            Growth(96, 64, 1),
        ),
    ),
)

#: the sound: 80 bands × 16 frames to one vector of 512
SOUND: tuple[Step, ...] = (
    Step(1, 32, 3, 1, 1, 2),
    Step(32, 64, 3, (3, 1), 1, 2),
    Step(64, 128, 3, 3, 1, 2),
    Step(128, 256, 3, (3, 2), 1, 1),
    Step(256, 512, 3, 1, 0, 0),
    Step(512, 512, 1, 1, 0, 0),
)

HINT = "name a checkpoint of the 96×96 or the 288×288 family in the option `checkpoint`"
_FIRST = "face_encoder_blocks.0.0.conv_block.0.weight"
#: what else circulates beside the generators: a name among the weights, the shape it has, what they are. The three
#: classes of https://github.com/primepake/wav2lip_288x288 are refused because that code can neither make nor run them
#: (as of 2025): see docs/ENGINES.md.
OTHERS: tuple[tuple[str, tuple[int, ...] | None, str], ...] = (
    (
        _FIRST,
        (6, 6, 7, 7),
        "a Wav2Lip_512_normal, a class that its published code cannot make",
    ),
    (
        "sam.sa.conv1.weight",
        None,
        "a Wav2Lip_SAM or Wav2Lip_384, classes that their published code cannot run",
    ),
    ("binary_pred.0.weight", None, "a discriminator, which judged pictures in training and paints none"),
    ("face_encoder.0.conv_block.0.weight", None, "a SyncNet, which judges lips and paints none"),
)

Activation = Callable[[], nn.Module]


class Unit(nn.Module):
    """Convolution (or its transpose), batch normalisation, activation; the input added before the last if residual."""

    def __init__(self, convolution: nn.Module, channels: int, activation: Activation, residual: bool = False) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        self.act = activation()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, H, W) → (B, channels out, H′, W′)."""
        y: Tensor = self.conv_block(x)
        out: Tensor = self.act(y + x if self.residual else y)
        return out


class Generator(nn.Module):
    """(B, 1, 80, 16) sound and (B, 6, side, side) face in 0..1 → (B, 3, side, side) face in 0..1, both BGR."""

    def __init__(self, family: Family, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.family = family

        def step(of: Step) -> list[nn.Module]:
            first = Unit(nn.Conv2d(of.inside, of.out, of.kernel, of.stride, of.padding), of.out, activation)
            return [first, *(residual(of.out) for _ in range(of.behind))]

        def residual(channels: int) -> nn.Module:
            return Unit(nn.Conv2d(channels, channels, 3, 1, 1), channels, activation, residual=True)

        def grow(of: Growth) -> nn.Module:
            wide = nn.ConvTranspose2d(of.inside, of.out, 3, of.stride, of.padding, of.extra)
            return nn.Sequential(Unit(wide, of.out, activation), *(residual(of.out) for _ in range(of.behind)))

        def corner() -> nn.Module:
            return nn.Sequential(*step(Step(512, 512, 3, 1, 0, 0)), *step(Step(512, 512, 1, 1, 0, 0)))

        self.face_encoder_blocks = nn.ModuleList(
            [*(nn.Sequential(*step(each)) for each in family.down), *(corner() for _ in range(family.corners))]
        )
        self.audio_encoder = nn.Sequential(*(unit for each in SOUND for unit in step(each)))
        self.face_decoder_blocks = nn.ModuleList(
            [
                nn.Sequential(*step(Step(512, 512, 1, 1, 0, 0))),
                grow(Growth(1024, 512, extra=0, stride=1, padding=0, behind=1)),
                *(grow(each) for each in family.up),
            ]
        )
        self.output_block = nn.Sequential(*step(Step(80, 32, 3, 1, 1, 0)), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, sound: Tensor, face: Tensor) -> Tensor:
        """(B, 1, 80, 16) and (B, 6, side, side) → (B, 3, side, side), 0..1."""
        rungs: list[Tensor] = []
        for block in self.face_encoder_blocks:
            face = block(face)
            rungs.append(face)
        x = self.audio_encoder(sound)
        for block in self.face_decoder_blocks:
            x = torch.cat((block(x), rungs.pop()), dim=1)
        result: Tensor = self.output_block(x)
        return result


def load(path: str | Path, device: str = "cpu") -> Generator:
    """The generator of a checkpoint file, ready to run. Raises :class:`EngineError` naming the file and what to do.

    Only tensors, numbers and plain containers are unpickled, never code. Optimizer state beside the weights and the
    ``module.`` of parallel training are ignored; TorchScript archives are taken apart to their weights.
    """
    file = Path(path).expanduser()
    weights = _weights(file)
    prelu = any(name.endswith(".act.weight") for name in weights)
    complaints = []
    for family in FAMILIES:
        with torch.device("meta"):
            network = Generator(family, nn.PReLU if prelu else nn.ReLU)
        problems = _differences(weights, network.state_dict())
        if not problems:
            network.load_state_dict(
                {name: value.float() for name, value in weights.items() if not name.endswith(COUNTER)},
                strict=False,
                assign=True,
            )
            for module in network.modules():  # the counters are still without memory
                if isinstance(module, nn.BatchNorm2d):
                    module.num_batches_tracked = torch.zeros((), dtype=torch.long)
            return network.to(device).requires_grad_(False).eval()
        complaints.append((len(problems), f"{family.name}×{family.name}: {problems[0]}"))
    other = next((what for mark, shape, what in OTHERS if _marked(weights, mark, shape)), "")
    if other:
        raise EngineError(f"{file} holds {other}", hint=HINT)
    raise EngineError(
        f"{file} is no Wav2Lip generator of a known family ({min(complaints)[1]})",
        hint=HINT,
    )


def _marked(weights: Mapping[str, Tensor], mark: str, shape: tuple[int, ...] | None) -> bool:
    return mark in weights and shape in (None, tuple(weights[mark].shape))


def _differences(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What is missing, too much or of another shape; nothing when the checkpoint fits."""
    problems = [f"{name} is missing" for name in wanted if name not in weights and not name.endswith(COUNTER)]
    problems += [f"{name} is unknown" for name in weights if name not in wanted]
    problems += [
        f"{name} is {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in weights.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    return problems


def _weights(file: Path) -> dict[str, Tensor]:
    """Name → tensor out of a checkpoint, without ``module.`` in front."""
    hint = "name a Wav2Lip checkpoint (.pth) in the option `checkpoint`"
    if not file.is_file():
        raise EngineError(f"checkpoint: {file} does not exist", hint=hint)
    if _is_script(file):
        try:
            content: Any = torch.jit.load(str(file), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]  # torch gives it no types
        except Exception as error:  # nearly every kind, for an archive that is damaged
            reason = str(error).strip()[:200]
            raise EngineError(
                f"checkpoint: {file} is a TorchScript archive that cannot be read: {reason}", hint
            ) from error
    else:
        content = checkpoints.read(file, hint)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise EngineError(f"checkpoint: {file} holds {type(content).__name__}, no table of weights", hint=hint)
    odd = [str(name) for name, value in content.items() if not isinstance(value, (Tensor, np.ndarray, np.generic))]
    if odd or not content:
        shown = ", ".join(odd[:6]) + (" …" if len(odd) > 6 else "") or "nothing"
        raise EngineError(
            f"checkpoint: {file} holds no table of weights, neither at its top nor as state_dict, but {shown}",
            hint=hint,
        )
    return {str(name).removeprefix("module."): torch.as_tensor(value) for name, value in content.items()}


def _is_script(file: Path) -> bool:
    """Whether the file is a TorchScript archive, which ``torch.load`` refuses."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.split("/", 1)[-1].startswith("code/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
