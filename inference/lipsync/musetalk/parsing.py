"""Face parsing: what each pixel of a picture of a face is, and which of them are painted.

The network has the parameter names and shapes of the published ``79999_iter.pth`` (BiSeNet on ResNet-18, trained on
CelebAMask-HQ with 19 classes). Architecture: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time
Semantic Segmentation", ECCV 2018, with a stage of the ResNet in place of the spatial path. The heads that only
training uses are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as fn
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.lipsync.musetalk import files

Mode = Literal["jaw", "neck", "raw"]
Labels = NDArray[np.uint8]
Mask = NDArray[np.uint8]  #: 0 or 255

SIDE = 512  #: pixels of a picture that is parsed
CLASSES = 19
SKIN, NOSE, MOUTH, NECK = 1, 10, (11, 12, 13), 14  #: the mouth: inside, upper lip, lower lip
TRAINING_HEADS = ("conv_out16.", "conv_out32.")
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  #: of ImageNet, RGB in 0..1

REACH, APEX, WIDEST = 33, 10, 10  #: pixels, of the shape that grows the skin: its side, first row, half its width
CHEEK_SHAPE = (35, 3)  #: pixels, width and height of the ellipse that shrinks the cheeks, twice


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inside: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) → (B, out, H, W)."""
        return fn.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or inside != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) → (B, out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(fn.relu(self.bn1(self.conv1(x)))))
        return fn.relu((x if self.downsample is None else self.downsample(x)) + y)


class ResNet(nn.Module):
    """The first layers of ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) → 128, 256 and 512 channels at an eighth, a sixteenth and a 32nd of the size."""
        x = self.layer1(fn.max_pool2d(fn.relu(self.bn1(self.conv1(x))), 3, 2, 1))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class Attention(nn.Module):
    """Features weighted by what the whole picture shows."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv = Unit(inside, out)
        self.conv_atten = nn.Conv2d(out, out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) → (B, out, H, W)."""
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(_overall(x))))


class Context(nn.Module):
    """What the picture shows, at an eighth of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet()
        self.arm16, self.arm32 = Attention(256, 128), Attention(512, 128)
        self.conv_head16, self.conv_head32 = Unit(128, 128), Unit(128, 128)
        self.conv_avg = Unit(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → the ResNet's features and the context's, 128 channels each."""
        eighth, sixteenth, least = self.resnet(x)
        deep = self.arm32(least) + self.conv_avg(_overall(least))
        deep = self.conv_head32(fn.interpolate(deep, size=sixteenth.shape[2:], mode="nearest"))
        deep = self.arm16(sixteenth) + deep
        return eighth, self.conv_head16(fn.interpolate(deep, size=eighth.shape[2:], mode="nearest"))


class Fusion(nn.Module):
    """Two kinds of features joined."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = Unit(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(B, 128, H, W) twice → (B, 256, H, W)."""
        x: Tensor = self.convblk(torch.cat((fine, coarse), dim=1))
        return x + x * torch.sigmoid(self.conv2(fn.relu(self.conv1(_overall(x)))))


class Head(nn.Module):
    """Scores of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Unit(256, 256)
        self.conv_out = nn.Conv2d(256, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 256, H, W) → (B, 19, H, W)."""
        scores: Tensor = self.conv_out(self.conv(x))
        return scores


class BiSeNet(nn.Module):
    """(B, 3, H, W) RGB, normalised → (B, 19, H, W) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = Context()
        self.ffm = Fusion()
        self.conv_out = Head()

    def forward(self, x: Tensor) -> Tensor:
        """The scores of every pixel."""
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return fn.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=True)


def _overall(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True)


def load(file: Path, device: str) -> BiSeNet:
    """The network of a checkpoint, ready to run. Raises :class:`EngineError` that names the file."""
    with torch.device("meta"):
        network = BiSeNet()
    state = files.weights(file)
    used = {name: value for name, value in state.items() if not name.startswith(TRAINING_HEADS)}
    files.fill(network, used, file, files.Place(device, torch.float32))
    return network


def normalised(pictures: Sequence[NDArray[np.uint8]], device: str) -> Tensor:
    """(512, 512, 3) RGB each → (B, 3, 512, 512) as the network was trained with."""
    x = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, spread = (torch.tensor(v, device=device).reshape(1, 3, 1, 1) for v in (MEAN, SPREAD))
    return (x - mean) / spread


class Painted:
    """From labels to the mask of what is painted."""

    def __init__(self, mode: Mode, left_cheek: int, right_cheek: int) -> None:
        """``left_cheek`` and ``right_cheek``: pixels of 512 from the middle to where the cheeks begin."""
        rows, columns = np.ogrid[:REACH, :REACH]
        self._grow = (np.abs(columns - REACH // 2) <= np.minimum(rows - APEX, WIDEST)).astype(np.uint8)
        self._shrink = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, CHEEK_SHAPE)
        across = np.arange(SIDE)
        self._cheeks = (across <= SIDE // 2 - left_cheek) | (across >= SIDE // 2 + right_cheek)
        self._mode = mode

    def mask(self, labels: Labels) -> Mask:
        """(512, 512) labels → 255 where the painted face shows.

        ``raw``: skin and mouth. ``neck``: the neck, too. ``jaw``: the mouth, and the skin grown by up to 16 pixels over
        what lies on it but the nose, with cheeks that are narrowed again.
        """
        mouth = np.isin(labels, MOUTH)
        if self._mode != "jaw":
            shown = mouth | np.isin(labels, (SKIN, NECK) if self._mode == "neck" else (SKIN,))
        else:
            grown = cv2.dilate((labels == SKIN).astype(np.uint8), self._grow)
            narrow = cv2.erode(grown, self._shrink, iterations=2)
            shown = mouth | ((np.where(self._cheeks, narrow, grown) > 0) & (labels != NOSE))
        return np.asarray(np.where(shown, 255, 0), np.uint8)
