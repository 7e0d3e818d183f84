"""The autoencoder and the UNet: a face and a piece of sound in, the same face speaking out.

The network sees two pictures of the face as latents, one with its lower half hidden, and 50 rows of 384 numbers of
sound. One pass at timestep 0 predicts the latents of the whole face; this is inpainting, not diffusion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import cuda
from inference.audio import Array
from inference.base import EngineError
from inference.lipsync.musetalk import files, layout, parsing
from inference.lipsync.musetalk.files import Place
from inference.lipsync.musetalk.hearing import Ears
from inference.lipsync.musetalk.layout import Published

Faces = NDArray[np.uint8]  #: (B, 256, 256, 3) BGR

SIDE = 256  #: pixels of a face
LATENTS = 4  #: channels of one picture
BATCH_CPU = 2  #: frames; more at a time are a little faster, but a cancelled job would end later
BATCH_GPU = 32  #: frames at most
FRAME_BYTES = 256 << 20  #: of GPU memory to paint one frame, at its peak, in half precision
#: names of the autoencoder's attention in files of 2022, such as the published one, and what they are now
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class Networks:
    """Everything loaded. Threads share it and take turns."""

    def __init__(self, published: Published, device: str, batch: int = 0) -> None:
        """``batch``: frames painted at a time; 0: 2 on a CPU, on a GPU as many as half of the free memory holds."""
        cuda.require(device)
        self.device = device
        self.dtype: torch.dtype = cuda.half(device)
        where = Place(device, self.dtype)
        with cuda.guarded(device, "the networks of MuseTalk"):
            self._vae = _autoencoder(published, where)
            self._unet = _unet(published, where)
            self._parsing = parsing.load(published.networks["parsing"], device)
            self.ears = Ears(published, where)
        self._scale = float(self._vae.config.scaling_factor)
        self._places = positions(self.ears.rows, self.ears.width).to(device, self.dtype)
        self._turn = threading.Lock()
        side = SIDE >> (len(self._vae.config.block_out_channels) - 1)
        self.latent_shape = (2 * LATENTS, side, side)  #: of one frame
        self.latent_type = np.float16 if self.dtype == torch.float16 else np.float32
        self.batch = batch or affordable(device)
        if self.ears.width != self._unet.config.cross_attention_dim:
            raise EngineError(
                f"musetalk: {published.networks['whisper']} gives {self.ears.width} numbers per row, but the UNet "
                f"hears {self._unet.config.cross_attention_dim}",
                hint="MuseTalk needs openai/whisper-tiny, in the format of transformers, in the folder whisper",
            )

    def encode(self, faces: Faces) -> NDArray[np.floating]:
        """(B, 256, 256, 3) BGR → (B, 8, 32, 32): the latents of each with its lower half hidden, then of the whole.

        The means, not samples, of the autoencoder's distributions: so the network was trained, and so the same
        template gives the same latents.
        """
        with self._turn, torch.inference_mode(), cuda.guarded(self.device, f"the latents of {len(faces)} frames"):
            whole = torch.from_numpy(np.ascontiguousarray(faces[..., ::-1])).to(self.device).permute(0, 3, 1, 2)
            whole = whole.float() / 255 * 2 - 1
            hidden = whole.clone()
            hidden[:, :, SIDE // 2 :] = -1
            latents = self._vae.encode(torch.cat((hidden, whole)).to(self.dtype)).latent_dist.mode() * self._scale
            return np.asarray(torch.cat(latents.chunk(2), dim=1).cpu().numpy())

    def parse(self, pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """(512, 512, 3) RGB each → (B, 512, 512) classes of :mod:`parsing`."""
        with self._turn, torch.inference_mode(), cuda.guarded(self.device, f"the parsing of {len(pictures)} frames"):
            scores = self._parsing(parsing.normalised(pictures, self.device))
            return np.asarray(scores.argmax(dim=1).byte().cpu().numpy())

    def paint(self, latents: NDArray[np.floating], sounds: Array, check: Callable[[], None]) -> Faces:
        """(B, 8, 32, 32) latents and (B, 50, 384) sound → (B, 256, 256, 3) BGR faces.

        ``check`` is called before each network, and may raise. Where memory is short for all at once, half as many are
        tried, down to one; later batches are that small.
        """
        what = f"face(s) of {SIDE}×{SIDE}"
        parts = cuda.in_batches(
            lambda span: self._paint(latents[span], sounds[span], check), len(latents), self.device, what, self._shrink
        )
        return np.concatenate(parts)

    def _shrink(self, batch: int) -> None:
        self.batch = min(self.batch, batch)

    def _paint(self, latents: NDArray[np.floating], sounds: Array, check: Callable[[], None]) -> Faces:
        with self._turn, torch.inference_mode():
            check()
            sound = torch.from_numpy(sounds).to(self.device, self.dtype) + self._places
            seen = torch.from_numpy(latents).to(self.device, self.dtype)
            predicted = self._unet(seen, torch.zeros(1, device=self.device), encoder_hidden_states=sound).sample
            check()
            pictures = self._vae.decode(predicted / self._scale).sample.float()
            pictures = (pictures / 2 + 0.5).clamp(0, 1) * 255
            return np.asarray(pictures.round().byte().flip(1).permute(0, 2, 3, 1).cpu().numpy())

    def warmup(self) -> None:
        """Every network once."""
        self.parse([np.zeros((parsing.SIDE, parsing.SIDE, 3), np.uint8)])
        latents = self.encode(np.zeros((1, SIDE, SIDE, 3), np.uint8))
        sounds = self.ears.features(np.zeros(16_000, np.float32))[: self.ears.frame_rows]
        self.paint(latents, sounds.reshape(1, self.ears.rows, self.ears.width), lambda: None)


def affordable(device: str) -> int:
    """Frames to paint at a time: 2 on a CPU, on a GPU as many as half of the free memory holds, at most 32."""
    if not cuda.is_gpu(device):
        return BATCH_CPU
    memory = cuda.free_and_total(device)
    return BATCH_GPU if memory is None else max(1, min(BATCH_GPU, memory[0] // 2 // FRAME_BYTES))


def positions(rows: int, width: int) -> Tensor:
    """(rows, width) sines and cosines that tell the network which row is which ("Attention Is All You Need", 3.5)."""
    at = torch.arange(rows, dtype=torch.float)[:, None]
    rates = torch.exp(torch.arange(0, width, 2).float() * (-np.log(10000.0) / width))
    return torch.stack((torch.sin(at * rates), torch.cos(at * rates)), dim=2).reshape(rows, width)


def _unet(published: Published, where: Place) -> Any:
    from diffusers import UNet2DConditionModel

    file = published.configurations["unet"]
    config = files.configuration(file)
    network = files.built(lambda: UNet2DConditionModel.from_config(config), file)
    channels = (network.config.in_channels, network.config.out_channels)
    if channels != (2 * LATENTS, LATENTS):
        raise EngineError(
            f"musetalk: {file} describes a UNet with {channels[0]} channels in and {channels[1]} out, not 8 and 4",
            hint=layout.GET,
        )
    weights = published.networks["unet"]
    files.fill(network, files.weights(weights), weights, where)
    return network


def _autoencoder(published: Published, where: Place) -> Any:
    from diffusers import AutoencoderKL

    file = published.configurations["vae"]
    config = files.configuration(file)
    network = files.built(lambda: AutoencoderKL.from_config(config), file)
    if network.config.latent_channels != LATENTS:
        raise EngineError(
            f"musetalk: {file} describes latents of {network.config.latent_channels} channels instead of {LATENTS}",
            hint="the folder sd-vae must hold stabilityai/sd-vae-ft-mse",
        )
    weights = published.networks["vae"]
    files.fill(network, {_renamed(name): value for name, value in files.weights(weights).items()}, weights, where)
    return network


def _renamed(name: str) -> str:
    if ".attentions." in name:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
    return name
