"""A folder that looks like a checkout of EchoMimic with its weights: the same modules, classes, calls and files.

The networks are a few numbers large and the "diffusion" is arithmetic, so what is tested is everything
between: which files are read, what is handed over in which order and shape, and what comes back.
"""

from __future__ import annotations

from pathlib import Path

DIFFUSERS = """
import json, torch
from torch import nn

class AutoencoderKL(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    @classmethod
    def from_pretrained(cls, path):
        json.load(open(path + "/config.json"))
        return cls()
    @property
    def dtype(self): return self.scale.dtype
    @property
    def device(self): return self.scale.device
    def decode(self, latents):
        class Out: pass
        out = Out(); out.sample = latents * self.scale
        return out

class DDIMScheduler:
    def __init__(self, **settings):
        assert settings["prediction_type"] == "v_prediction", settings
        self.settings = settings
"""

PIPELINE = """
import torch, wave
from PIL import Image

class Output:
    def __init__(self, videos): self.videos = videos

class Bar:
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def update(self, n=1): raise AssertionError("the adapter did not put its own bar in")

class Audio2VideoPipeline:
    def __init__(self, vae, reference_unet, denoising_unet, audio_guider, face_locator, scheduler):
        self.vae, self.reference_unet, self.denoising_unet = vae, reference_unet, denoising_unet
        self.audio_guider, self.face_locator, self.scheduler = audio_guider, face_locator, scheduler
        self.calls = []
    def to(self, device, dtype=None):
        return self
    def progress_bar(self, iterable=None, total=None):
        return Bar()
    @torch.no_grad()
    def __call__(self, ref_image, audio_path, face_mask_tensor, width, height, video_length, num_inference_steps,
                 guidance_scale, num_images_per_prompt=1, eta=0.0, generator=None, output_type="tensor",
                 return_dict=True, callback=None, callback_steps=1, context_schedule="uniform", context_frames=12,
                 context_stride=1, context_overlap=0, context_batch_size=1, interpolation_factor=1,
                 audio_sample_rate=16000, fps=25, audio_margin=2, **kwargs):
        assert isinstance(ref_image, Image.Image) and ref_image.size == (width, height)
        assert face_mask_tensor.shape == (1, 1, 1, height, width), face_mask_tensor.shape
        assert 0.02 < float(face_mask_tensor.mean()) < 0.8
        assert ACCELERATED or guidance_scale > 1
        features = self.audio_guider.audio2feat(audio_path)
        chunks = self.audio_guider.feature2chunks(feature_array=features, fps=fps)
        frames = min(video_length, len(chunks))
        self.calls.append((num_inference_steps, guidance_scale, frames))
        self.face_locator(face_mask_tensor)
        noise = torch.randn((1, 1, frames, 1, 1), generator=generator)
        picture = torch.tensor(list(ref_image.getdata())).reshape(height, width, 3).permute(2, 0, 1)[None, :, None]
        latents = (picture / 255).repeat(1, 1, frames, 1, 1)
        with self.progress_bar(total=num_inference_steps) as bar:
            for step in range(num_inference_steps):
                for window in range(0, frames, context_frames - context_overlap):
                    self.denoising_unet(latents[:, :, window : window + context_frames], step)
                bar.update()
        made = [self.vae.decode(latents[:, :, k]).sample for k in range(frames)]
        return Output((torch.stack(made, 2) + 0.02 * noise).clamp(0, 1).float())
"""

PILLOW = """
import numpy as np

class Image:
    def __init__(self, pixels):
        self.pixels = np.array(pixels)
        self.size = (pixels.shape[1], pixels.shape[0])
    def getdata(self):
        return [tuple(pixel) for pixel in self.pixels.reshape(-1, 3).tolist()]

def fromarray(pixels):
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return Image(pixels)
"""

UNET_2D = """
import json
from torch import nn

class UNet2DConditionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    @classmethod
    def from_pretrained(cls, path, subfolder):
        json.load(open(f"{path}/{subfolder}/config.json"))
        return cls()
"""

UNET_3D = """
import torch
from torch import nn

class EchoUNet3DConditionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.motion = nn.Linear(2, 2), nn.Linear(3, 3)
    @classmethod
    def from_pretrained_2d(cls, path, motion_module_path, subfolder, unet_additional_kwargs):
        assert unet_additional_kwargs.cross_attention_dim == 384
        model = cls()
        model.motion.load_state_dict(torch.load(motion_module_path, weights_only=True))
        return model
    def forward(self, latents, step):
        return latents
"""

LOCATOR = """
import torch
from torch import nn

class FaceLocator(nn.Module):
    def __init__(self, conditioning_embedding_channels, conditioning_channels=1, block_out_channels=(16, 32, 64, 128)):
        super().__init__()
        assert (conditioning_embedding_channels, conditioning_channels) == (320, 1)
        assert block_out_channels == (16, 32, 96, 256)
        self.layer = nn.Conv3d(1, 1, 1)
    def forward(self, mask):
        return self.layer(mask)
"""

AUDIO = """
import numpy as np, wave
from .whisper import load_model

class Audio2Feature:
    def __init__(self, model_path, device):
        self.model = load_model(model_path, device=device)
    def audio2feat(self, audio_path):
        with wave.open(audio_path) as file:
            assert file.getframerate() == 16000 and file.getnchannels() == 1
            return np.zeros((int(file.getnframes() / 320), 5, 384), np.float32)
    def feature2chunks(self, feature_array, fps, audio_feat_length=[2, 2]):
        return np.zeros((int(len(feature_array) * fps / 50) + 1, 50, 384), np.float32)

def load_audio_model(model_path, device):
    return Audio2Feature(model_path=model_path, device=device)
"""

WHISPER = """
import shutil, torch

def load_model(path, device):
    assert shutil.which("ffmpeg"), "its reader calls ffmpeg by name"
    return torch.load(path, map_location=device, weights_only=True)
"""

CONFIG = """
unet_additional_kwargs:
  use_motion_module: true
  cross_attention_dim: 384
noise_scheduler_kwargs:
  beta_start: 0.00085
  prediction_type: "v_prediction"
"""


def build(folder: Path) -> Path:
    """Write it; returns the checkout, whose weights lie in ``pretrained_weights``."""
    files = {
        "diffusers/__init__.py": DIFFUSERS,
        "PIL/__init__.py": "",
        "PIL/Image.py": PILLOW,
        "src/pipelines/pipeline_echo_mimic.py": "ACCELERATED = False\n" + PIPELINE,
        "src/pipelines/pipeline_echo_mimic_acc.py": "ACCELERATED = True\n" + PIPELINE,
        "src/models/unet_2d_condition.py": UNET_2D,
        "src/models/unet_3d_echo.py": UNET_3D,
        "src/models/face_locator.py": LOCATOR,
        "src/models/whisper/audio2feature.py": AUDIO,
        "src/models/whisper/whisper.py": WHISPER,
        "configs/inference/inference_v2.yaml": CONFIG,
        "pretrained_weights/sd-vae-ft-mse/config.json": "{}",
        "pretrained_weights/sd-image-variations-diffusers/unet/config.json": "{}",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    import torch  # takes seconds

    weights = folder / "pretrained_weights"
    (weights / "audio_processor").mkdir()
    linear = torch.nn.Linear(2, 2).state_dict()
    for name in ("denoising_unet.pth", "denoising_unet_acc.pth", "reference_unet.pth"):
        torch.save({f"layer.{key}": value for key, value in linear.items()}, weights / name)
    for name in ("motion_module.pth", "motion_module_acc.pth"):
        torch.save(torch.nn.Linear(3, 3).state_dict(), weights / name)
    locator = torch.nn.Conv3d(1, 1, 1).state_dict()
    torch.save({f"layer.{key}": value for key, value in locator.items()}, weights / "face_locator.pth")
    torch.save({"dims": 384}, weights / "audio_processor" / "whisper_tiny.pt")
    return folder
