"""Folders that look like checkouts of EchoMimic and EchoMimicV2 with weights: the same modules, classes, calls, files.

The networks are a few numbers large and the "diffusion" is arithmetic, so what is tested is everything
between: which files are read, what is handed over in which order and shape, and what comes back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

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
from src.models.mutual_self_attention import ReferenceAttentionControl
from PIL import Image

class Output:
    def __init__(self, videos): self.videos = videos

class Bar:
    def __enter__(self): return self
    def __exit__(self, *exc): pass
    def update(self, n=1): raise AssertionError("the adapter did not put its own bar in")

class NAME:
    def __init__(self, vae, reference_unet, denoising_unet, audio_guider, GUIDE, scheduler, image_proj_model=None,
                 tokenizer=None, text_encoder=None):
        self.vae, self.reference_unet, self.denoising_unet = vae, reference_unet, denoising_unet
        self.audio_guider, self.guide, self.scheduler = audio_guider, GUIDE, scheduler
        self.calls = []
    def to(self, device, dtype=None):
        return self
    def progress_bar(self, iterable=None, total=None):
        return Bar()
    @torch.no_grad()
    def __call__(self, ref_image, audio_path, PICTURES, width, height, video_length, num_inference_steps,
                 guidance_scale, num_images_per_prompt=1, eta=0.0, generator=None, output_type="tensor",
                 return_dict=True, callback=None, callback_steps=1, context_schedule="uniform", context_frames=12,
                 context_stride=1, context_overlap=0, context_batch_size=1, interpolation_factor=1,
                 audio_sample_rate=16000, fps=25, audio_margin=2, START**kwargs):
        assert not kwargs, kwargs
        assert (context_frames, context_overlap, audio_sample_rate) == (12, 3, 16000)
        assert isinstance(ref_image, Image.Image) and ref_image.size == (width, height)
        assert (width, height) == SIZE
        assert 0 <= float(PICTURES.min()) < 0.01 < 0.99 < float(PICTURES.max()) <= 1
        CHECK
        assert ACCELERATED or guidance_scale > 1
        features = self.audio_guider.audio2feat(audio_path)
        chunks = self.audio_guider.feature2chunks(feature_array=features, fps=fps)
        frames = min(video_length, len(chunks))
        assert frames == video_length, "the sound is too short for the picture"
        self.calls.append((num_inference_steps, guidance_scale, frames))
        shown = self.guide(PICTURES)
        control = ReferenceAttentionControl(self.reference_unet, do_classifier_free_guidance=guidance_scale > 1)
        assert control.mask.device == self.vae.device
        noise = torch.randn((1, 1, frames, 1, 1), generator=generator)
        picture = torch.tensor(list(ref_image.getdata())).reshape(height, width, 3).permute(2, 0, 1)[None, :, None]
        latents = (picture / 255).repeat(1, 1, frames, 1, 1)
        with self.progress_bar(total=num_inference_steps) as bar:
            for step in range(num_inference_steps):
                for window in range(0, frames, context_frames - context_overlap):
                    inside = slice(window, window + context_frames)
                    assert not POSES or shown[:, :, inside].shape[2] == latents[:, :, inside].shape[2]
                    self.denoising_unet(latents[:, :, inside], step)
                bar.update()
        made = [self.vae.decode(latents[:, :, k]).sample for k in range(frames)]
        return Output((torch.stack(made, 2) + 0.02 * noise).clamp(0, 1).float())
"""

MASK = """assert PICTURES.shape == (1, 1, 1, height, width), PICTURES.shape
        assert 0.02 < float(PICTURES.mean()) < 0.8"""
DRAWN = """assert PICTURES.shape == (1, 3, video_length, height, width), PICTURES.shape
        self.poses = PICTURES"""


def pipeline(name: str, guide: str, fast: bool) -> str:
    """The module of one release's pipeline."""
    first = guide == "face_locator"
    words = {"CHECK": MASK if first else DRAWN, "NAME": name, "GUIDE": guide, "START": "" if first else "start_idx=0, "}
    words |= {
        "PICTURES": "face_mask_tensor" if first else "poses_tensor",
        "SIZE": str((512,) * 2 if first else (768,) * 2),
    }
    text = PIPELINE
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    return f"ACCELERATED = {fast}\nPOSES = {not first}\n{text}"


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

class NAME(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.motion = nn.Linear(2, 2), nn.Linear(3, 3)
    @classmethod
    def from_pretrained_2d(cls, pretrained_model_path, motion_module_path, subfolder=None, unet_additional_kwargs=None,
                           mm_zero_proj_out=False):
        assert unet_additional_kwargs.cross_attention_dim == 384
        model = cls()
        model.motion.load_state_dict(torch.load(motion_module_path, weights_only=True))
        return model
    def forward(self, latents, step):
        return latents
"""

ATTENTION = """
import torch

class ReferenceAttentionControl:
    def __init__(self, unet, mode="write", do_classifier_free_guidance=False,
                 attention_auto_machine_weight=float("inf"), gn_auto_machine_weight=1.0, style_fidelity=1.0,
                 reference_attn=True, reference_adain=False, fusion_blocks="midup", batch_size=1):
        self.unet = unet
        self.register_reference_hooks(mode, do_classifier_free_guidance, attention_auto_machine_weight,
                                      gn_auto_machine_weight, style_fidelity, reference_attn, reference_adain,
                                      fusion_blocks, batch_size=batch_size)
    def register_reference_hooks(self, mode, do_classifier_free_guidance, attention_auto_machine_weight,
                                 gn_auto_machine_weight, style_fidelity, reference_attn, reference_adain,
                                 dtype=torch.float16, batch_size=1, num_images_per_prompt=1,
                                 device=torch.device("cuda"), fusion_blocks="midup"):
        self.mask = torch.zeros(2).to(device).bool()
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
    def forward(self, conditioning):
        return self.layer(conditioning)
"""

POSE_ENCODER = """
from torch import nn

class PoseEncoder(nn.Module):
    def __init__(self, conditioning_embedding_channels, conditioning_channels=1, block_out_channels=(16, 32, 64, 128)):
        super().__init__()
        assert (conditioning_embedding_channels, conditioning_channels) == (320, 3)
        assert block_out_channels == (16, 32, 96, 256)
        self.layer = nn.Conv3d(3, 1, 1)
    def forward(self, conditioning):
        return self.layer(conditioning)
"""

DRAWING = """
import numpy as np

def draw_pose_select_v2(pose, H, W, ref_w=2160):
    assert ref_w == 800
    picture = np.zeros((3, H, W), np.uint8)
    for x, y in pose["hands"][0]:
        picture[:, int(y * H), int(x * W)] = 255
    return picture
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


COMMON = {
    "diffusers/__init__.py": DIFFUSERS,
    "PIL/__init__.py": "",
    "PIL/Image.py": PILLOW,
    "src/models/unet_2d_condition.py": UNET_2D,
    "src/models/mutual_self_attention.py": ATTENTION,
    "src/models/whisper/audio2feature.py": AUDIO,
    "src/models/whisper/whisper.py": WHISPER,
    "configs/inference/inference_v2.yaml": CONFIG,
    "pretrained_weights/sd-vae-ft-mse/config.json": "{}",
    "pretrained_weights/sd-image-variations-diffusers/unet/config.json": "{}",
}
FIRST = {
    "src/__init__.py": "",
    "src/pipelines/pipeline_echo_mimic.py": pipeline("Audio2VideoPipeline", "face_locator", False),
    "src/pipelines/pipeline_echo_mimic_acc.py": pipeline("Audio2VideoPipeline", "face_locator", True),
    "src/models/unet_3d_echo.py": UNET_3D.replace("NAME", "EchoUNet3DConditionModel"),
    "src/models/face_locator.py": LOCATOR,
}
SECOND = {
    "src/pipelines/pipeline_echomimicv2.py": pipeline("EchoMimicV2Pipeline", "pose_encoder", False),
    "src/pipelines/pipeline_echomimicv2_acc.py": pipeline("EchoMimicV2Pipeline", "pose_encoder", True),
    "src/models/unet_3d_emo.py": UNET_3D.replace("NAME", "EMOUNet3DConditionModel"),
    "src/models/pose_encoder.py": POSE_ENCODER,
    "src/utils/dwpose_util.py": DRAWING,
}


def build(folder: Path, release: int = 1) -> Path:
    """Write it; returns the checkout, whose weights lie in ``pretrained_weights``."""
    for name, text in {**COMMON, **(FIRST if release == 1 else SECOND)}.items():
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
    guide = torch.nn.Conv3d(1 if release == 1 else 3, 1, 1).state_dict()
    named = {f"layer.{key}": value for key, value in guide.items()}
    torch.save(named, weights / ("face_locator.pth" if release == 1 else "pose_encoder.pth"))
    torch.save({"dims": 384}, weights / "audio_processor" / ("whisper_tiny.pt" if release == 1 else "tiny.pt"))
    if release == 2:
        poses(folder / "assets" / "halfbody_demo" / "pose" / "01", 4)
    return folder


def poses(folder: Path, count: int, **changes: Any) -> Path:
    """Poses as EchoMimicV2 saves them: the hand's wrist moves 10 pixels right from one to the next."""
    folder.mkdir(parents=True)
    for at in range(count):
        hands = np.full((2, 21, 2), 0.5)
        hands[0, 0] = ((100 + 10 * at + 0.5) / 700, 200.5 / 700)
        pose = {
            "bodies": {"candidate": np.zeros((18, 2)), "subset": np.zeros((1, 18)), "score": np.ones((1, 18))},
            "hands": hands,
            "hands_score": np.ones((2, 21)),
            "faces": np.zeros((1, 68, 2)),
            "faces_score": np.ones((1, 68)),
            "num": at,
            "draw_pose_params": [700, 700, 40, 740, 30, 730],
            **changes,
        }
        np.save(folder / f"{at}.npy", pose, allow_pickle=True)  # type: ignore[arg-type]  # numpy saves it as an object
    return folder
