"""A folder laid out as MuseTalk 1.5 is published, with the same kinds of networks, a few channels wide.

The values are made up; the parsing network is of the published size, and takes every pixel for skin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LAYERS = Path(__file__).with_name("bisenet_layers.txt")
WIDTH, LAYERS_HEARD = 16, 3  #: of the sound: numbers per row, and the encoder's layers plus its input

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 8, 16, 16],
    "center_input_sample": False,
    "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

Shapes = dict[str, tuple[int, ...]]


def parsing_shapes() -> Shapes:
    """Every name and shape of the published parsing network, from the written-out table."""
    shapes: Shapes = {}
    for line in LAYERS.read_text("utf-8").splitlines():
        kind, name, size = line.split()[:3] if not line.startswith("#") else ("#", "", "")
        if kind == "conv":
            shapes[f"{name}.weight"] = tuple(int(side) for side in size.split("x"))
        elif kind == "norm":
            shapes |= {f"{name}.{part}": (int(size),) for part in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def parsing_weights(label: int = 1) -> dict[str, torch.Tensor]:
    """Made-up values; every pixel gets ``label``."""
    random = torch.Generator().manual_seed(3)
    made = {}
    for name, shape in parsing_shapes().items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
        elif len(shape) == 4:
            made[name] = torch.randn(shape, generator=random) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            made[name] = torch.full(shape, 0.5)
    last = made["conv_out.conv_out.weight"]
    last.zero_()
    last[label] = 1
    return made


def make(folder: Path) -> Path:
    """Write every file; returns the folder, which goes into the option ``musetalk``."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    for name in ("musetalkV15", "sd-vae", "whisper", "face-parse-bisent"):
        (folder / name).mkdir(parents=True)
    (folder / "musetalkV15" / "musetalk.json").write_text(json.dumps(UNET))
    torch.save(UNet2DConditionModel.from_config(UNET).state_dict(), folder / "musetalkV15" / "unet.pth")
    (folder / "sd-vae" / "config.json").write_text(json.dumps(VAE))
    vae = AutoencoderKL.from_config(VAE).state_dict()
    torch.save(
        {old_name(name): value for name, value in vae.items()}, folder / "sd-vae" / "diffusion_pytorch_model.bin"
    )
    config = WhisperConfig(
        vocab_size=10,
        d_model=WIDTH,
        encoder_layers=LAYERS_HEARD - 1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    (folder / "whisper" / "config.json").write_text(config.to_json_string())
    whisper = WhisperModel(config).state_dict()
    torch.save({f"model.{name}": value for name, value in whisper.items()}, folder / "whisper" / "pytorch_model.bin")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    torch.save(parsing_weights(), folder / "face-parse-bisent" / "79999_iter.pth")
    return folder


def old_name(name: str) -> str:
    """What a value of the autoencoder is called in the published file."""
    if ".attentions." in name:
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
    return name
