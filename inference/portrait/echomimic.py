"""The ``echomimic`` backend: the published pipeline, loaded from a checkout and weights given by path.

EchoMimic (Chen et al. 2024, https://github.com/BadToBest/EchoMimic) is not part of this project. What is here
puts its parts together as its own ``infer_audio2vid.py`` does, on the device of the worker, with our own face
finder, and hands progress and cancellation into its loops. Its packages are imported only when it is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import media
from inference.audio import Array
from inference.base import EngineError, InputError, ResourceError

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

SIDE = 512  #: pixels; what the published weights were trained on
CONTEXT_FRAMES, CONTEXT_OVERLAP = 12, 3  #: frames denoised together, as its authors do
MASK_GROW = 0.1  #: share of the face's box added to the mask on every side
TAIL_S = 0.5  #: silence added for the last frames' audio features
DECODE_SHARE = 0.1  #: of the progress that decoding the frames takes

CODE = (
    "configs/inference/inference_v2.yaml",
    "src/models/unet_2d_condition.py",
    "src/models/unet_3d_echo.py",
    "src/models/face_locator.py",
    "src/models/whisper/audio2feature.py",
)
PIPELINES = {"standard": "pipeline_echo_mimic", "accelerated": "pipeline_echo_mimic_acc"}
COMMON_WEIGHTS = ("reference_unet.pth", "face_locator.pth", "audio_processor/whisper_tiny.pt")
FOLDERS = ("sd-vae-ft-mse", "sd-image-variations-diffusers")
DENOISER = {"standard": "denoising_unet.pth", "accelerated": "denoising_unet_acc.pth"}
MOTION = {"standard": "motion_module.pth", "accelerated": "motion_module_acc.pth"}


@dataclass(frozen=True)
class Request:
    """One video to make."""

    face: Frame  #: (512, 512, 3) the face with room round it
    box: tuple[float, float, float, float]  #: left, top, right, bottom of the face in it, pixels
    samples: Array  #: 16 kHz mono
    frames: int
    fps: float
    seed: int
    steps: int
    cfg: float


class EchoMimic:
    """The loaded pipeline. One job at a time."""

    def __init__(self, checkout: Path | None, weights: Path | None, variant: str, device: str) -> None:
        self.checkout, self.weights, self.variant = _folders(checkout, weights, variant)
        self._device = device
        self._links: tempfile.TemporaryDirectory[str] | None = None
        sys.path.insert(0, str(self.checkout))
        try:
            self._ffmpeg_on_path()
            self._pipe, self._torch, self._dtype = self._load()
        except BaseException:
            self.close()
            raise

    def files(self) -> list[Path]:
        """The weights that shape the result most."""
        names = (*COMMON_WEIGHTS, DENOISER[self.variant], MOTION[self.variant])
        return [self.weights / name for name in names]

    def generate(
        self, request: Request, scratch: Path, check: Callable[[], None], progress: Callable[[float], None]
    ) -> NDArray[np.uint8]:
        """(T, 512, 512, 3) BGR frames; ``progress`` gets 0..1, ``check`` may raise between passes."""
        torch = self._torch
        sound = scratch / "echomimic.wav"
        write_wav(sound, np.concatenate([request.samples, np.zeros(int(TAIL_S * media.SAMPLE_RATE), np.float32)]))
        mask = np.zeros((SIDE, SIDE), np.float32)
        left, top, right, bottom = (round(edge) for edge in _grown(request.box))
        mask[top:bottom, left:right] = 1
        tensor = torch.from_numpy(mask).to(device=self._device, dtype=self._dtype)[None, None, None]
        image = importlib.import_module("PIL.Image").fromarray(np.ascontiguousarray(request.face[..., ::-1]))
        try:
            with _watched(self._pipe, request.steps, request.frames, check, progress):
                made = self._pipe(
                    image,
                    str(sound),
                    tensor,
                    SIDE,
                    SIDE,
                    request.frames,
                    request.steps,
                    request.cfg,
                    generator=torch.Generator("cpu").manual_seed(request.seed),
                    audio_sample_rate=media.SAMPLE_RATE,
                    context_frames=CONTEXT_FRAMES,
                    context_overlap=CONTEXT_OVERLAP,
                    fps=request.fps,
                ).videos
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"{self._device} ran out of memory on {request.frames} frames",
                hint="ask for fewer with frames_num, or use fewer workers on this device",
            ) from error
        finally:
            sound.unlink(missing_ok=True)
        return _as_frames(made, request.frames)

    def close(self) -> None:
        """Let go of the pipeline and of its place in ``sys.path``."""
        self._pipe = None
        with contextlib.suppress(ValueError):
            sys.path.remove(str(self.checkout))
        if self._links is not None:
            folders = os.environ.get("PATH", "").split(os.pathsep)
            os.environ["PATH"] = os.pathsep.join(part for part in folders if part != self._links.name)
            self._links.cleanup()
            self._links = None

    def _load(self) -> tuple[Any, ModuleType, Any]:
        torch = self._import("torch")
        diffusers, omegaconf = self._import("diffusers"), self._import("omegaconf")
        unet_2d = self._import("src.models.unet_2d_condition").UNet2DConditionModel
        unet_3d = self._import("src.models.unet_3d_echo").EchoUNet3DConditionModel
        locator = self._import("src.models.face_locator").FaceLocator
        audio = self._import("src.models.whisper.audio2feature")
        pipeline = self._import(f"src.pipelines.{PIPELINES[self.variant]}").Audio2VideoPipeline
        config = omegaconf.OmegaConf.load(str(self.checkout / CODE[0]))
        # Halves are for GPUs; processors add them slowly or not at all.
        dtype = torch.float16 if self._device.startswith("cuda") else torch.float32
        base = str(self.weights / FOLDERS[1])

        def state(name: str) -> Any:
            return torch.load(str(self.weights / name), map_location="cpu", weights_only=True)

        try:
            vae = diffusers.AutoencoderKL.from_pretrained(str(self.weights / FOLDERS[0]))
            reference = unet_2d.from_pretrained(base, subfolder="unet")
            reference.load_state_dict(state("reference_unet.pth"))
            denoiser = unet_3d.from_pretrained_2d(
                base,
                str(self.weights / MOTION[self.variant]),
                subfolder="unet",
                unet_additional_kwargs=config.unet_additional_kwargs,
            )
            denoiser.load_state_dict(state(DENOISER[self.variant]), strict=False)
            face_locator = locator(320, conditioning_channels=1, block_out_channels=(16, 32, 96, 256))
            face_locator.load_state_dict(state("face_locator.pth"))
            ears = audio.load_audio_model(model_path=str(self.weights / COMMON_WEIGHTS[2]), device=self._device)
            parts = {"vae": vae, "reference_unet": reference, "denoising_unet": denoiser, "face_locator": face_locator}
            for part in parts.values():
                part.to(device=self._device, dtype=dtype)
            settings = omegaconf.OmegaConf.to_container(config.noise_scheduler_kwargs)
            pipe = pipeline(**parts, audio_guider=ears, scheduler=diffusers.DDIMScheduler(**settings))
            return pipe.to(self._device, dtype=dtype), torch, dtype
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"{self._device} has no room for EchoMimic", hint="it wants about 12 GB") from error
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"echomimic: {self.checkout} with the weights in {self.weights} cannot be loaded: {error}",
                hint="code and weights must be of the same release; see the README of the checkout",
            ) from error

    def _import(self, name: str) -> ModuleType:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            missing = error.name or name
            raise EngineError(
                f"echomimic needs the package {missing!r}, which cannot be imported: {error}",
                hint=f"pip install -r {self.checkout / 'requirements.txt'}, or name its interpreter with `python` "
                "in config.json",
            ) from error
        file = getattr(module, "__file__", None)
        if name.startswith("src.") and file and not Path(file).resolve().is_relative_to(self.checkout.resolve()):
            raise EngineError(
                f"echomimic: {name} was imported from {file}, not from {self.checkout}",
                hint="another package named src is in the way; remove it from this interpreter",
            )
        return module

    def _ffmpeg_on_path(self) -> None:
        """Its audio reader calls a program named ffmpeg: offer ours where there is none."""
        if shutil.which("ffmpeg"):
            return
        self._links = tempfile.TemporaryDirectory(prefix="ffmpeg-")
        name = "ffmpeg.exe" if os.name == "nt" else "ffmpeg"
        target = Path(self._links.name, name)
        try:
            target.symlink_to(media.ffmpeg_binary())
        except OSError:
            shutil.copy(media.ffmpeg_binary(), target)
        os.environ["PATH"] = os.pathsep.join([self._links.name, os.environ.get("PATH", "")])


def check_length(frames: int, most: int) -> None:
    """Refuse what would not fit: the pipeline holds all frames as floats, 3 MB each, several times."""
    if frames > most:
        raise InputError(
            f"frames_num: {frames} frames are more than the {most} this backend makes at once",
            hint="ask for fewer with frames_num, or raise the option `max_frames` where memory allows",
        )


def write_wav(path: Path, samples: Array) -> None:
    """16 kHz mono samples as 16-bit WAV."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(media.SAMPLE_RATE)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


@contextlib.contextmanager
def _watched(
    pipe: Any, steps: int, frames: int, check: Callable[[], None], progress: Callable[[float], None]
) -> Iterator[None]:
    """Look at cancellation and tell progress at every pass of the denoiser and every decoded frame."""
    done = {"steps": 0, "passes": 0, "per_step": 0, "decoded": 0}

    def tell() -> None:
        inside = done["passes"] / done["per_step"] if done["per_step"] else 0.0
        share = (done["steps"] + min(inside, 1.0)) / max(steps, 1)
        decoded = min(done["decoded"] / max(frames, 1), 1.0)
        progress(min(share, 1.0) * (1 - DECODE_SHARE) + decoded * DECODE_SHARE)

    def before_pass(*_: object) -> None:
        check()
        tell()
        done["passes"] += 1

    class Bar:
        def update(self, count: int = 1) -> None:
            done["steps"] += count
            done["per_step"], done["passes"] = max(done["per_step"], done["passes"]), 0

    decode = pipe.vae.decode

    def decode_one(*given: Any, **named: Any) -> Any:
        check()
        done["decoded"] += 1
        tell()
        return decode(*given, **named)

    bars = pipe.progress_bar
    hook = pipe.denoising_unet.register_forward_pre_hook(before_pass)
    pipe.vae.decode = decode_one
    pipe.progress_bar = lambda *_, **__: contextlib.nullcontext(Bar())
    try:
        yield
    finally:
        hook.remove()
        pipe.vae.decode, pipe.progress_bar = decode, bars


def _folders(checkout: Path | None, weights: Path | None, variant: str) -> tuple[Path, Path, str]:
    """The folders, after a look whether everything is in them."""
    if checkout is None:
        raise EngineError(
            "echomimic: the option `checkout` is missing",
            hint="git clone https://github.com/BadToBest/EchoMimic and name that folder",
        )
    code = checkout.expanduser().absolute()
    if not code.is_dir():
        raise EngineError(f"echomimic: checkout {code} is no folder", hint="correct the option `checkout`")
    folder = (weights.expanduser() if weights is not None else code / "pretrained_weights").absolute()
    wanted = [*(code / name for name in CODE), code / f"src/pipelines/{PIPELINES[variant]}.py"]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise EngineError(
            f"echomimic: the checkout lacks {', '.join(missing)}",
            hint="`checkout` must be the folder of the published code, with src/ and configs/ in it",
        )
    wanted = [folder / name for name in (*COMMON_WEIGHTS, DENOISER[variant], MOTION[variant])]
    missing = [str(path) for path in wanted if not path.is_file()]
    missing += [str(folder / name) for name in FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise EngineError(
            f"echomimic: weights missing: {', '.join(missing)}",
            hint="git clone https://huggingface.co/BadToBest/EchoMimic (with git-lfs) and name it with `weights`",
        )
    return code, folder, variant


def _grown(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    x, y = MASK_GROW * (right - left), MASK_GROW * (bottom - top)
    return max(0, left - x), max(0, top - y), min(SIDE, right + x), min(SIDE, bottom + y)


def _as_frames(made: Any, frames: int) -> NDArray[np.uint8]:
    """(1, 3, T, H, W) RGB in 0..1 → (frames, H, W, 3) BGR; the last frame stands in for missing ones."""
    if made.ndim != 5 or made.shape[1] != 3 or not made.shape[2]:
        raise EngineError(f"echomimic: the pipeline returned {tuple(made.shape)} instead of (1, 3, frames, side, side)")
    result = np.empty((frames, *made.shape[3:], 3), np.uint8)
    for k in range(frames):
        picture = np.asarray(made[0, :, min(k, made.shape[2] - 1)].float().cpu().numpy())
        result[k] = (np.clip(picture[::-1], 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return result
