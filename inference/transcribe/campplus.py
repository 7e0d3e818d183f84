"""CAM++: a second or two of speech in, one vector of the voice out.

The network of Wang et al. 2023 (*CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware
Masking*, arXiv 2303.00332): a convolution over time and frequency, then densely connected layers over time that weigh
their channels by the mean of the whole sound, then mean and deviation over time.
"""

from __future__ import annotations

from typing import Any

MELS = 80
GROWTH = 32  #: channels that each dense layer adds
BLOCKS = ((12, 1), (24, 2), (16, 2))  #: dense layers and their dilation
SEGMENT = 100  #: frames of the stretches whose means are context as well
EPSILON = 1e-5
COUNTER = "num_batches_tracked"  #: what training counted; nothing here reads it


class CamPlusPlus:
    """The network, for inference only. Normalisations that follow a convolution are part of its weights."""

    def __init__(self, state: dict[str, Any], device: str = "cpu") -> None:
        """Take the tensors of a checkpoint; KeyError or ValueError where they are not those of this network."""
        import torch

        self._torch = torch
        self._open = {name: value.float() for name, value in state.items() if not name.endswith(COUNTER)}
        self._convolutions: dict[str, tuple[Any, Any]] = {}
        self._scales: dict[str, tuple[Any, Any]] = {}
        self._read()
        if self._open:
            raise ValueError(f"{len(self._open)} tensors too many, such as {min(self._open)}")
        self._convolutions = {name: (w.to(device), b.to(device)) for name, (w, b) in self._convolutions.items()}
        self._scales = {name: (s.to(device), b.to(device)) for name, (s, b) in self._scales.items()}

    def __call__(self, mels: Any) -> Any:
        """Log mel energies (n, frames, 80), each less its mean over time → vectors (n, 192), not of unit length."""
        return self.vectors(self.head(mels))

    def head(self, mels: Any) -> Any:
        """The first half, which hears some frames around each: (n, frames, 80) → (n, 320, frames)."""
        sound = self._plane(mels.transpose(1, 2)[:, None], "head.conv1").relu_()
        for layer in ("head.layer1", "head.layer2"):
            short = self._plane(sound, f"{layer}.0.shortcut", 2, padding=0)
            sound = self._residual(sound, f"{layer}.0", 2).add_(short).relu_()
            sound = self._residual(sound, f"{layer}.1", 1).add_(sound).relu_()
        return self._plane(sound, "head.conv2", 2).relu_().flatten(1, 2)

    def vectors(self, sound: Any) -> Any:
        """The second half: windows of what the head gives, (n, 320, frames) → (n, 192)."""
        sound = self._time(sound, "xvector.tdnn", stride=2).relu_()
        for number, (layers, dilation) in enumerate(BLOCKS, 1):
            sound = self._block(sound, f"xvector.block{number}", layers, dilation)
            sound = self._time(self._active(sound, f"xvector.transit{number}"), f"xvector.transit{number}.linear")
        sound = self._active(sound, "xvector.out_nonlinear")
        pooled = self._torch.cat((sound.mean(-1), sound.std(-1)), dim=1)
        weight, bias = self._convolutions["xvector.dense"]
        return self._torch.nn.functional.linear(pooled, weight[..., 0], bias)

    def _read(self) -> None:
        """Take every tensor of the checkpoint by its name."""
        self._fold("head.conv1", "head.bn1")
        for layer in ("head.layer1", "head.layer2"):
            for block in (f"{layer}.0", f"{layer}.1"):
                self._fold(f"{block}.conv1", f"{block}.bn1")
                self._fold(f"{block}.conv2", f"{block}.bn2")
            self._fold(f"{layer}.0.shortcut.0", f"{layer}.0.shortcut.1", f"{layer}.0.shortcut")
        self._fold("head.conv2", "head.bn2")
        self._fold("xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm", "xvector.tdnn")
        for number, (layers, _) in enumerate(BLOCKS, 1):
            for place in range(1, layers + 1):
                name = f"xvector.block{number}.tdnnd{place}"
                self._scales[name] = self._scale(f"{name}.nonlinear1.batchnorm")
                self._fold(f"{name}.linear1", f"{name}.nonlinear2.batchnorm")
                for part in ("linear_local", "linear1", "linear2"):
                    self._fold(f"{name}.cam_layer.{part}")
            self._scales[f"xvector.transit{number}"] = self._scale(f"xvector.transit{number}.nonlinear.batchnorm")
            self._fold(f"xvector.transit{number}.linear")
        self._scales["xvector.out_nonlinear"] = self._scale("xvector.out_nonlinear.batchnorm")
        self._fold("xvector.dense.linear", "xvector.dense.nonlinear.batchnorm", "xvector.dense")

    def _scale(self, name: str) -> tuple[Any, Any]:
        """A batch normalisation as factor and offset of each channel."""
        mean, variance = self._open.pop(f"{name}.running_mean"), self._open.pop(f"{name}.running_var")
        factor = (variance + EPSILON).rsqrt() * self._open.pop(f"{name}.weight", 1.0)
        return factor, self._open.pop(f"{name}.bias", 0.0) - mean * factor

    def _fold(self, convolution: str, normalisation: str = "", name: str = "") -> None:
        """A convolution and the normalisation behind it as one."""
        weight = self._open.pop(f"{convolution}.weight")
        bias = self._open.pop(f"{convolution}.bias", self._torch.zeros(len(weight)))
        if normalisation:
            factor, offset = self._scale(normalisation)
            weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
            bias = bias * factor + offset
        # Channels last: the head takes half the time on a processor.
        plane = {"memory_format": self._torch.channels_last} if weight.dim() == 4 else {}
        self._convolutions[name or convolution] = weight.contiguous(**plane), bias

    def _residual(self, sound: Any, name: str, stride: int) -> Any:
        return self._plane(self._plane(sound, f"{name}.conv1", stride).relu_(), f"{name}.conv2")

    def _plane(self, sound: Any, name: str, stride: int = 1, padding: int = 1) -> Any:
        """A convolution over frequency, in steps of ``stride``, and time."""
        weight, bias = self._convolutions[name]
        return self._torch.nn.functional.conv2d(sound, weight, bias, stride=(stride, 1), padding=padding)

    def _time(self, sound: Any, name: str, stride: int = 1, dilation: int = 1) -> Any:
        """A convolution over time."""
        weight, bias = self._convolutions[name]
        padding = weight.shape[-1] // 2 * dilation
        return self._torch.nn.functional.conv1d(sound, weight, bias, stride, padding, dilation)

    def _active(self, sound: Any, name: str) -> Any:
        factor, offset = self._scales[name]
        return self._torch.addcmul(offset[:, None], sound, factor[:, None]).relu_()

    def _block(self, sound: Any, name: str, layers: int, dilation: int) -> Any:
        """Dense layers: each reads all channels before it and adds its own."""
        have = sound.shape[1]
        channels = sound.new_empty(len(sound), have + layers * GROWTH, sound.shape[2])
        channels[:, :have] = sound
        for number in range(1, layers + 1):
            layer = f"{name}.tdnnd{number}"
            narrow = self._time(self._active(channels[:, :have], layer), f"{layer}.linear1").relu_()
            local = self._time(narrow, f"{layer}.cam_layer.linear_local", dilation=dilation)
            context = self._time(self._context(narrow), f"{layer}.cam_layer.linear1").relu_()
            mask = self._time(context, f"{layer}.cam_layer.linear2").sigmoid_()
            channels[:, have : have + GROWTH] = local * mask
            have += GROWTH
        return channels

    def _context(self, sound: Any) -> Any:
        """Means over everything and over each second or two."""
        whole = sound.mean(-1, keepdim=True)
        if sound.shape[-1] <= SEGMENT:
            return 2 * whole
        pooled = self._torch.nn.functional.avg_pool1d(sound, SEGMENT, SEGMENT, ceil_mode=True)
        return whole + pooled.repeat_interleave(SEGMENT, dim=-1)[..., : sound.shape[-1]]
