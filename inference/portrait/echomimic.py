"""The ``echomimic`` backend: the published pipelines, loaded from a checkout and weights given by path.

EchoMimic (Chen et al. 2024, https://github.com/antgroup/echomimic) moves a head, EchoMimicV2 (Meng et al. 2024,
https://github.com/antgroup/echomimic_v2) head, arms and hands. Neither is part of this project. What is here
puts their parts together as their own ``infer_audio2vid.py`` and ``infer.py`` do, on the device of the worker,
with our own face finder, and hands progress and cancellation into their loops. Their packages are imported only
when they are loaded. What differs between the releases stands in :data:`VARIANTS`.
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

from inference import checkpoints, cuda, media
from inference import weights as installed_weights
from inference.audio import Array
from inference.base import EngineError, InputError
from inference.portrait.echomimic_poses import Poses

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

CONTEXT_FRAMES, CONTEXT_OVERLAP = 12, 3  #: frames denoised together, as its authors do
MASK_GROW = 0.1  #: share of the face's box added to the mask on every side
TAIL_S = 0.5  #: silence added for the last frames' audio features
DECODE_SHARE = 0.1  #: of the progress that decoding the frames takes

CONFIG = "configs/inference/inference_v2.yaml"  #: of both releases
FOLDERS = ("sd-vae-ft-mse", "sd-image-variations-diffusers")
DRAWING = "src.utils.dwpose_util"
ATTENTION = "src.models.mutual_self_attention"
REFERENCE = "src.models.unet_2d_condition"
EARS = "src.models.whisper.audio2feature"


@dataclass(frozen=True)
class Guide:
    """The network that tells the denoiser where what is: a mask of the face, or drawn poses."""

    module: str
    name: str  #: of its class
    argument: str  #: of the pipeline
    channels: int  #: of the picture it takes
    weights: str


@dataclass(frozen=True)
class Variant:
    """One published pipeline: where its parts are in the checkout, and what its weights are called."""

    release: str
    source: str  #: of the code
    hub: str  #: of the weights
    side: int  #: pixels; what the published weights were trained on
    pipeline: tuple[str, str]  #: module and class
    denoiser: tuple[str, str]
    guide: Guide
    ears: str  #: file of the Whisper model
    fast: bool = False  #: the distilled weights: few steps, no guidance
    poses: bool = False  #: whether it is guided by poses

    @property
    def folder(self) -> str:
        """Where its weights are installed, under the folder of all weights."""
        return "echomimic-v2" if self.poses else "echomimic"

    @property
    def installed(self) -> str:
        """What its weights are called by the installer."""
        return f"{self.folder}-accelerated" if self.fast else self.folder

    @property
    def code(self) -> tuple[str, ...]:
        """The files of the checkout that must be there."""
        names = [REFERENCE, EARS, ATTENTION, self.pipeline[0], self.denoiser[0], self.guide.module]
        names += [DRAWING] if self.poses else []
        return (CONFIG, *(f"{name.replace('.', '/')}.py" for name in names))

    @property
    def denoiser_weights(self) -> str:
        """File of the denoiser."""
        return "denoising_unet_acc.pth" if self.fast else "denoising_unet.pth"

    @property
    def motion_weights(self) -> str:
        """File of the motion module."""
        return "motion_module_acc.pth" if self.fast else "motion_module.pth"

    @property
    def weights(self) -> tuple[str, ...]:
        """Every file of weights that is its own."""
        return ("reference_unet.pth", self.denoiser_weights, self.motion_weights, self.guide.weights, self.ears)


def _first(pipeline: str, fast: bool) -> Variant:
    return Variant(
        release="EchoMimic",
        source="https://github.com/antgroup/echomimic",
        hub="https://huggingface.co/BadToBest/EchoMimic",
        side=512,
        pipeline=(f"src.pipelines.{pipeline}", "Audio2VideoPipeline"),
        denoiser=("src.models.unet_3d_echo", "EchoUNet3DConditionModel"),
        guide=Guide("src.models.face_locator", "FaceLocator", "face_locator", 1, "face_locator.pth"),
        ears="audio_processor/whisper_tiny.pt",
        fast=fast,
    )


def _second(pipeline: str, fast: bool) -> Variant:
    return Variant(
        release="EchoMimicV2",
        source="https://github.com/antgroup/echomimic_v2",
        hub="https://huggingface.co/BadToBest/EchoMimicV2",
        side=768,
        pipeline=(f"src.pipelines.{pipeline}", "EchoMimicV2Pipeline"),
        denoiser=("src.models.unet_3d_emo", "EMOUNet3DConditionModel"),
        guide=Guide("src.models.pose_encoder", "PoseEncoder", "pose_encoder", 3, "pose_encoder.pth"),
        ears="audio_processor/tiny.pt",
        fast=fast,
        poses=True,
    )


VARIANTS = {
    "standard": _first("pipeline_echo_mimic", fast=False),
    "accelerated": _first("pipeline_echo_mimic_acc", fast=True),
    "v2": _second("pipeline_echomimicv2", fast=False),
    "v2_accelerated": _second("pipeline_echomimicv2_acc", fast=True),
}
POSES = "assets/halfbody_demo/pose/01"  #: in a checkout of EchoMimicV2, unless others are named
#: files by which a checkout of another release is known
MARKS = {
    "src/models/unet_3d_echo.py": "EchoMimic (variant standard or accelerated)",
    "src/models/unet_3d_emo.py": "EchoMimicV2 (variant v2 or v2_accelerated)",
    "src/pipeline_wan_fun_inpaint_audio.py": "EchoMimicV3, which is not supported (its forerunners are)",
}


@dataclass(frozen=True)
class Request:
    """One video to make."""

    face: Frame  #: (side, side, 3) the part of the picture that moves
    box: tuple[float, float, float, float]  #: left, top, right, bottom of the face in it, pixels
    samples: Array  #: 16 kHz mono
    frames: int
    fps: float
    seed: int
    steps: int
    cfg: float


class EchoMimic:
    """The loaded pipeline. One job at a time."""

    def __init__(
        self, checkout: Path | None, weights: Path | None, variant: str, device: str, *, poses: Path | None = None
    ) -> None:
        self.variant = VARIANTS[variant]
        self.checkout, self.weights = _folders(checkout, weights, self.variant)
        self._poses = None
        if self.variant.poses:
            self._poses = Poses(poses or self.checkout / POSES, self.variant.side)
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
        """The weights that shape the result most, and the poses."""
        return [*(self.weights / name for name in self.variant.weights), *(self._poses.files if self._poses else ())]

    def generate(
        self, request: Request, scratch: Path, check: Callable[[], None], progress: Callable[[float], None]
    ) -> NDArray[np.uint8]:
        """(T, side, side, 3) BGR frames; ``progress`` gets 0..1, ``check`` may raise between passes."""
        torch = self._torch
        sound = scratch / "echomimic.wav"
        write_wav(sound, np.concatenate([request.samples, np.zeros(int(TAIL_S * media.SAMPLE_RATE), np.float32)]))
        image = self._import("PIL.Image").fromarray(np.ascontiguousarray(request.face[..., ::-1]))
        side = self.variant.side
        try:
            with _watched(self._pipe, request.steps, request.frames, check, progress):
                made = self._pipe(
                    image,
                    str(sound),
                    self._guide(request, check),
                    side,
                    side,
                    request.frames,
                    request.steps,
                    request.cfg,
                    generator=torch.Generator("cpu").manual_seed(request.seed),
                    audio_sample_rate=media.SAMPLE_RATE,
                    context_frames=CONTEXT_FRAMES,
                    context_overlap=CONTEXT_OVERLAP,
                    fps=request.fps,
                ).videos
        except EngineError:
            raise
        except Exception as error:
            hint = "ask for fewer with frames_num, or use fewer workers on this device"
            short = cuda.out_of_memory(error, self._device, f"{request.frames} frames", hint)
            raise short or EngineError(
                f"echomimic: the pipeline of {self.checkout} failed: {type(error).__name__}: {error}",
                hint="code, weights and packages must be of the same release; see the README of the checkout",
            ) from error
        finally:
            sound.unlink(missing_ok=True)
        return _as_frames(made, request.frames)

    def _guide(self, request: Request, check: Callable[[], None]) -> Any:
        """What the guide looks at, RGB in 0..1: (1, 1, 1, side, side) mask or (1, 3, frames, side, side) poses."""
        if self._poses is None:
            pictures = _mask(request.box, self.variant.side)[None]
        else:
            draw = self._import(DRAWING).draw_pose_select_v2
            pictures = self._poses.drawn(request.frames, draw, check)
        return self._torch.from_numpy(pictures).to(device=self._device).to(dtype=self._dtype)[None] / 255

    def close(self) -> None:
        """Free the pipeline; remove its place in ``sys.path`` and its modules."""
        self._pipe = None
        with contextlib.suppress(ValueError):
            sys.path.remove(str(self.checkout))
        loaded = {name: module for name, module in sys.modules.items() if f"{name}.".startswith("src.")}
        for name in [name for name, module in loaded.items() if self._is_ours(module)]:
            del sys.modules[name]
        if self._links is not None:
            folders = os.environ.get("PATH", "").split(os.pathsep)
            os.environ["PATH"] = os.pathsep.join(part for part in folders if part != self._links.name)
            self._links.cleanup()
            self._links = None

    def _load(self) -> tuple[Any, ModuleType, Any]:
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # its loaders too: a checkpoint may hold tensors, not code
        torch = self._import("torch")
        diffusers, omegaconf = self._import("diffusers"), self._import("omegaconf")
        variant, guide = self.variant, self.variant.guide
        unet_2d = self._class(REFERENCE, "UNet2DConditionModel")
        audio = self._import(EARS)
        unet_3d = self._class(*variant.denoiser)
        pipeline = self._class(*variant.pipeline)
        guiding = self._class(guide.module, guide.name)
        if variant.poses:
            self._import(DRAWING)
        _place_masks(self._class(ATTENTION, "ReferenceAttentionControl").register_reference_hooks, torch, self._device)
        config = omegaconf.OmegaConf.load(str(self.checkout / CONFIG))
        cuda.require(self._device)
        dtype = cuda.half(self._device)
        base = str(self.weights / FOLDERS[1])

        def state(name: str) -> Any:
            return checkpoints.read(self.weights / name, f"get {name} again from {variant.hub}")

        try:
            vae = diffusers.AutoencoderKL.from_pretrained(str(self.weights / FOLDERS[0]))
            reference = unet_2d.from_pretrained(base, subfolder="unet")
            reference.load_state_dict(state("reference_unet.pth"))
            denoiser = unet_3d.from_pretrained_2d(
                base,
                str(self.weights / variant.motion_weights),
                subfolder="unet",
                unet_additional_kwargs=config.unet_additional_kwargs,
            )
            denoiser.load_state_dict(state(variant.denoiser_weights), strict=False)
            looking = guiding(320, conditioning_channels=guide.channels, block_out_channels=(16, 32, 96, 256))
            looking.load_state_dict(state(guide.weights))
            ears = audio.load_audio_model(model_path=str(self.weights / variant.ears), device=self._device)
            parts = {"vae": vae, "reference_unet": reference, "denoising_unet": denoiser, guide.argument: looking}
            for part in parts.values():
                part.to(device=self._device, dtype=dtype)
            settings = omegaconf.OmegaConf.to_container(config.noise_scheduler_kwargs)
            pipe = pipeline(**parts, audio_guider=ears, scheduler=diffusers.DDIMScheduler(**settings))
            return pipe.to(self._device, dtype=dtype), torch, dtype
        except EngineError:
            raise
        except Exception as error:
            hint = "it wants about 12 GB; use fewer workers on this device"
            short = cuda.out_of_memory(error, self._device, f"loading {variant.release}", hint)
            raise short or EngineError(
                f"echomimic: {self.checkout} with the weights in {self.weights} cannot be loaded: {error}",
                hint="code and weights must be of the same release; see the README of the checkout",
            ) from error

    def _class(self, module: str, name: str) -> Any:
        found = getattr(self._import(module), name, None)
        if found is None:
            raise EngineError(
                f"echomimic: {module} of {self.checkout} has no {name}",
                hint=f"the adapter fits {self.variant.source} as of 2025",
            )
        return found

    def _import(self, name: str) -> ModuleType:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            self._no_stranger(name)
            missing = error.name or name
            raise EngineError(
                f"echomimic needs the package {missing!r}, which cannot be imported: {error}",
                hint=f"pip install -r {self.checkout / 'requirements.txt'}, or name its interpreter with `python` "
                "in config.json",
            ) from error
        self._no_stranger(name)
        return module

    def _no_stranger(self, name: str) -> None:
        """Complain of another package named src, which would be taken for that of the checkout."""
        known = [each for each in ("src", name) if name.startswith("src.") and each in sys.modules]
        for each in known:
            if not self._is_ours(sys.modules[each]):
                raise EngineError(
                    f"echomimic: {each} was imported from {_place(sys.modules[each])}, not from {self.checkout}",
                    hint="another package named src is in the way; remove it from this interpreter",
                )

    def _is_ours(self, module: ModuleType) -> bool:
        """Whether a module is of the checkout. A folder without __init__.py has no file, but a path."""
        place = _place(module)
        return not place or Path(place).resolve().is_relative_to(self.checkout.resolve())

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


def _place_masks(hooks: Any, torch: ModuleType, device: str) -> None:
    """Its attention makes its masks on "cuda" by default, which is the first GPU whatever the pipeline is on."""
    wanted = torch.device(device)
    hooks.__defaults__ = tuple(
        wanted if isinstance(value, torch.device) else value for value in hooks.__defaults__ or ()
    )


def _place(module: ModuleType) -> str:
    """Where a module or a package without a file was found."""
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))


def _folders(checkout: Path | None, weights: Path | None, variant: Variant) -> tuple[Path, Path]:
    """The folders, after a look whether everything is in them."""
    if checkout is None:
        raise EngineError(
            "echomimic: the option `checkout` is missing",
            hint=f"git clone {variant.source} and name that folder",
        )
    code = checkout.expanduser().absolute()
    if not code.is_dir():
        raise EngineError(f"echomimic: checkout {code} is no folder", hint="correct the option `checkout`")
    missing = [str(code / name) for name in variant.code if not (code / name).is_file()]
    if missing:
        other = next((what for mark, what in MARKS.items() if mark not in variant.code and (code / mark).is_file()), "")
        if other:
            raise EngineError(
                f"echomimic: {code} is a checkout of {other}",
                hint=f"set `variant` to what the checkout is, or git clone {variant.source}",
            )
        raise EngineError(
            f"echomimic: the checkout lacks {', '.join(missing)}",
            hint=f"`checkout` must be the folder of {variant.source}, with src/ and configs/ in it",
        )
    folder = _weights_of(code, weights, variant)
    missing = [str(folder / name) for name in variant.weights if not (folder / name).is_file()]
    missing += [str(folder / name) for name in FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise EngineError(
            f"echomimic: weights missing: {', '.join(missing)}",
            hint=f"python -m inference.weights install {variant.installed}; or git clone {variant.hub} (with git-lfs) "
            "and name it with `weights`",
        )
    return code, folder


def _weights_of(code: Path, named: Path | None, variant: Variant) -> Path:
    """The folder of the weights: the one that is named, that of the checkout, or the installed one."""
    if named is not None:
        return named.expanduser().absolute()
    own, installed = code / "pretrained_weights", installed_weights.folder() / variant.folder
    return installed if installed.is_dir() and not own.is_dir() else own


def _mask(box: tuple[float, float, float, float], side: int) -> NDArray[np.uint8]:
    """(1, side, side) 255 where the face is, and a little round it."""
    left, top, right, bottom = box
    x, y = MASK_GROW * (right - left), MASK_GROW * (bottom - top)
    grown = (max(0, left - x), max(0, top - y), min(side, right + x), min(side, bottom + y))
    left, top, right, bottom = (round(edge) for edge in grown)
    mask = np.zeros((1, side, side), np.uint8)
    mask[:, top:bottom, left:right] = 255
    return mask


def _as_frames(made: Any, frames: int) -> NDArray[np.uint8]:
    """(1, 3, T, H, W) RGB in 0..1 → (frames, H, W, 3) BGR; the last frame stands in for missing ones."""
    if made.ndim != 5 or made.shape[1] != 3 or not made.shape[2]:
        raise EngineError(f"echomimic: the pipeline returned {tuple(made.shape)} instead of (1, 3, frames, side, side)")
    result = np.empty((frames, *made.shape[3:], 3), np.uint8)
    for k in range(frames):
        picture = np.asarray(made[0, :, min(k, made.shape[2] - 1)].float().cpu().numpy())
        result[k] = (np.clip(picture[::-1], 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return result
