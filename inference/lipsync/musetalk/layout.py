"""The folder of published files: which there must be. Needs none of the packages that load them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from inference import extras, weights
from inference.base import EngineError
from inference.finding import Finding, tried

#: what is read -> where it lies under the folder; of several files the first that is there
NETWORK_FILES: Mapping[str, tuple[str, ...]] = {
    "unet": ("musetalkV15/unet.safetensors", "musetalkV15/unet.pth"),
    "vae": ("sd-vae/diffusion_pytorch_model.safetensors", "sd-vae/diffusion_pytorch_model.bin"),
    "whisper": ("whisper/model.safetensors", "whisper/pytorch_model.bin"),
    "parsing": ("face-parse-bisent/79999_iter.safetensors", "face-parse-bisent/79999_iter.pth"),
}
CONFIGURATIONS: Mapping[str, str] = {
    "unet": "musetalkV15/musetalk.json",
    "vae": "sd-vae/config.json",
    "whisper": "whisper/config.json",
    "mel": "whisper/preprocessor_config.json",
}
MODEL = "musetalk"  #: in the manifest of weights
GET = f"python -m inference.weights install {MODEL}, or get them as docs/systems/musetalk.md lists them"


@dataclass(frozen=True)
class Published:
    """Every file in use."""

    networks: Mapping[str, Path]  #: unet, vae, whisper, parsing
    configurations: Mapping[str, Path]  #: unet, vae, whisper, mel

    @property
    def all(self) -> list[Path]:
        """Weights and configurations."""
        return [*self.networks.values(), *self.configurations.values()]


def find(option: Path | None) -> Published:
    """The files under a folder laid out as published, by default the installed ones.

    Raises :class:`EngineError` that names all that are missing.
    """
    folder = option.expanduser() if option is not None else _installed()
    if not folder.is_dir():
        raise EngineError(f"musetalk: {folder} is no folder", hint="correct the option `musetalk`")
    _refuse_others(folder)
    networks = {
        key: next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])
        for key, names in NETWORK_FILES.items()
    }
    found = Published(networks, {key: folder / name for key, name in CONFIGURATIONS.items()})
    missing = [str(path) for path in found.all if not path.is_file()]
    if missing:
        raise EngineError(f"musetalk: files missing: {', '.join(missing)}", hint=GET)
    return found


def _installed() -> Path:
    """What ``python -m inference.weights install musetalk`` brings."""
    try:
        return weights.find_model(MODEL)
    except weights.WeightError as error:
        raise EngineError(
            f"backend musetalk needs its files: {error}",
            hint=f"python -m inference.weights install {MODEL}, or name a folder in the options: "
            '{"backend": "musetalk", "musetalk": "/path/models"}',
        ) from error


def _refuse_others(folder: Path) -> None:
    """Raise where the folder is a known one, but not the one that is needed."""
    if any((folder / name).is_file() for name in NETWORK_FILES["unet"]):
        return
    if (folder / "unet.pth").is_file():
        raise EngineError(
            f"musetalk: {folder} holds the UNet alone, not the other networks",
            hint=f"name the folder above it, {folder.absolute().parent}, in the option `musetalk`",
        )
    if (folder / "models" / "musetalkV15").is_dir():
        raise EngineError(
            f"musetalk: {folder} has the files in its folder models",
            hint=f"name {folder / 'models'} in the option `musetalk`",
        )
    for old in (folder / "musetalk" / "pytorch_model.bin", folder / "pytorch_model.bin"):
        if old.is_file():
            raise EngineError(
                f"musetalk: {old} is MuseTalk 1.0; this backend runs 1.5, whose {folder / 'musetalkV15' / 'unet.pth'} "
                "is missing",
                hint='huggingface-cli download TMElyralab/MuseTalk --include "musetalkV15/*" --local-dir <that folder>',
            )


def diagnose(option: Path | None) -> Iterator[Finding]:
    """Look at packages and files without loading them."""

    def packages() -> str:
        extras.require("musetalk")
        return ", ".join(extras.PACKAGES["musetalk"].values())

    yield tried("musetalk packages", packages)
    yield tried("musetalk files", lambda: f"{len(find(option).all)} files in {option or 'the folder of weights'}")
