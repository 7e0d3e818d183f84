"""The content of the published files, read without running any code in it and held against its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inference import checkpoints
from inference.base import EngineError
from inference.lipsync.musetalk.layout import GET

COUNTER = "num_batches_tracked"  #: of a BatchNorm; not needed
LFS, PAGE = b"version https://git-lfs", (b"<!doctype", b"<html")


@dataclass(frozen=True)
class Place:
    """Where a network runs, and in which precision."""

    device: str
    dtype: torch.dtype


def configuration(file: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises :class:`EngineError` that names it."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"musetalk: {file} cannot be read as JSON: {error}", hint=GET) from error
    if not isinstance(content, dict):
        raise EngineError(f"musetalk: {file} holds no JSON object", hint=GET)
    return content


def weights(file: Path) -> dict[str, Tensor]:
    """Name → tensor, on the CPU, without ``module.`` in front. Raises :class:`EngineError` that names the file.

    Only tensors and plain containers are unpickled, never code.
    """
    _refuse_stand_ins(file)
    if file.suffix == ".safetensors":
        try:
            content: Any = load_file(file)
        except Exception as error:  # safetensors has a kind of its own, and raises others, too
            reason = str(error).strip()[:200]
            raise EngineError(f"musetalk: {file} is no file of weights that can be read: {reason}", GET) from error
    else:
        content = checkpoints.read(file, GET)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise EngineError(f"musetalk: {file} holds no table of weights", hint=GET)
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _refuse_stand_ins(file: Path) -> None:
    """Raise for what download tools leave instead of a file."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if start.startswith(LFS):
        raise EngineError(f"musetalk: {file} is a pointer of git-lfs, not the file", hint="git lfs pull in its folder")
    if start.startswith(PAGE):
        raise EngineError(
            f"musetalk: {file} is a web page, not the file", hint="open its address in a browser and save the file"
        )


def built(make: Callable[[], nn.Module], file: Path) -> Any:
    """A network without memory, made as a configuration says. Raises :class:`EngineError` that names the file."""
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # the libraries raise nearly every kind for values they do not know
        raise EngineError(
            f"musetalk: {file} describes no network that can be built: {str(error).strip()[:200]}", hint=GET
        ) from error


def fill(network: nn.Module, state: Mapping[str, Tensor], file: Path, where: Place) -> None:
    """Give a network its values, and make it ready to run where they are wanted.

    Raises :class:`EngineError` that names the file and the first value that is wrong.
    """
    wanted = network.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state and not name.endswith(COUNTER)]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EngineError(
            f"musetalk: {file} does not fit its network: {problems[0]}{more}",
            hint=f"weights and configuration must be of one release; {GET}",
        )
    placed = {name: value.to(where.device, where.dtype) for name, value in state.items() if not name.endswith(COUNTER)}
    network.load_state_dict(placed, strict=False, assign=True)
    for module in network.modules():  # the counters are still without memory
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=where.device)
    network.requires_grad_(False).eval()
