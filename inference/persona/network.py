"""What makes a drawn mouth into a person's own: a U-Net that works on a quarter of the pixels.

Depthwise and pointwise convolutions keep it under 60 million operations a frame (a multiplication and an addition
count as two); what a frame shall say modulates every block (FiLM, Perez et al. 2018), and maps that are learned for
each place hold what never moves, such as teeth. The idea of a small network for one person's mouth is that of
Ultralight-Digital-Human and DH_live; that of correcting what a mesh has drawn is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.persona.patch import SIDE

AROUND = 2  #: frames before and after one that tell what it shall show
INPUTS = 2 * (2 * AROUND + 1) + 3  #: openings and widths of these frames; yaw, pitch and roll
WIDTHS = (16, 32, 64, 128)  #: channels at 1/2, 1/4, 1/8 and 1/16 of the size
STYLE = 128  #: numbers that modulate
SLOPE = 0.1  #: of the leaky rectifiers


class Block(nn.Module):
    """Depthwise 3×3, pointwise, modulated, pointwise; added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)
        self.style = nn.Linear(STYLE, 2 * channels)
        nn.init.normal_(self.style.weight, std=0.02)
        for made in (self.style.bias, self.leave.weight, self.leave.bias):
            if made is not None:
                nn.init.zeros_(made)

    def forward(self, picture: Tensor, style: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, STYLE) → (B, channels, h, w)."""
        gain, shift = self.style(style)[..., None, None].chunk(2, 1)
        mixed = functional.leaky_relu(self.mix(self.near(picture)) * (1 + gain) + shift, SLOPE)
        result: Tensor = picture + self.leave(mixed)
        return result


class Blocks(nn.Module):
    """Two blocks, one after the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Block(channels), Block(channels)

    def forward(self, picture: Tensor, style: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, STYLE) → (B, channels, h, w)."""
        result: Tensor = self.second(self.first(picture, style), style)
        return result


def _down(of: int, to: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(of, of, 3, stride=2, padding=1, groups=of), nn.Conv2d(of, to, 1), nn.LeakyReLU(SLOPE)
    )


class Network(nn.Module):
    """A drawn mouth and what it shall show → the mouth as it looks, and how much of it to take."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = WIDTHS
        self.style = nn.Sequential(
            nn.Linear(INPUTS, STYLE), nn.LeakyReLU(SLOPE), nn.Linear(STYLE, STYLE), nn.LeakyReLU(SLOPE)
        )
        self.enter = nn.Sequential(nn.Conv2d(3 * 4, half, 1), nn.LeakyReLU(SLOPE))
        self.down = nn.ModuleList([_down(half, quarter), _down(quarter, eighth), _down(eighth, sixteenth)])
        self.seen = nn.ModuleList([Block(quarter), Block(eighth), Blocks(sixteenth)])
        self.up = nn.ModuleList(
            [nn.Conv2d(sixteenth, eighth, 1), nn.Conv2d(eighth, quarter, 1), nn.Conv2d(quarter, half, 1)]
        )
        self.made = nn.ModuleList([Blocks(eighth), Blocks(quarter), Blocks(half)])
        self.places = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(1, channels, SIDE >> level, SIDE >> level))
            for level, channels in ((4, sixteenth), (3, eighth), (2, quarter), (1, half))
        )
        self.leave = nn.Conv2d(half, 4 * 4, 1)
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(self, drawn: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, SIDE, SIDE) in 0..1 and (B, INPUTS) → the picture (B, 3, SIDE, SIDE) and its mask, 0..1."""
        style = self.style(asked)
        kept = [self.enter(functional.pixel_unshuffle(drawn, 2))]
        for down, block in zip(self.down, self.seen, strict=True):
            kept.append(block(down(kept[-1]), style))
        picture = kept.pop() + self.places[0]
        for level, (up, blocks) in enumerate(zip(self.up, self.made, strict=True), 1):
            larger = functional.interpolate(up(picture), scale_factor=2.0, mode="nearest")
            picture = blocks(larger + kept.pop() + self.places[level], style)
        out = functional.pixel_shuffle(self.leave(functional.leaky_relu(picture, SLOPE)), 2)
        return drawn + out[:, :3], torch.sigmoid(2 + out[:, 3:])


def on_device(device: str) -> Network:
    """A network with weights of chance, laid out in memory as convolutions like it: twice as fast on a CPU."""
    network = Network().to(device)
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def operations() -> int:
    """Of one frame: two for each multiplication with its addition, in convolutions and linear layers."""
    network, total = Network().eval(), 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * module.weight.numel() * out.shape[2] * out.shape[3]
        elif isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, INPUTS))
    return total
